import os
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from deepfake_ray import schema
from deepfake_ray.errors import UserError
from deepfake_ray.storage import files, outputs


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    place = str(tmp_path / "a" / "b.json")
    files.write_bytes(place, b"first")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        files.write_bytes(place, b"second")
    assert files.read_bytes(place) == b"first"
    assert files.list_names(str(tmp_path / "a")) == ["b.json"]


def test_what_a_killed_writer_leaves_is_not_read(tmp_path):
    """Killed in the middle of a second part: every reader of the directory sees the first one, whole, and no more."""
    import duckdb
    import pandas as pd

    from deepfake_ray.data.predictions import read_predictions

    values = {"row": 0, "uri": "a.jpg", "status": "error", "threshold": 0.5, "model_id": "m", "run_id": "r"}
    columns = [pa.array([values.get(field.name)], field.type) for field in schema.PREDICTIONS]
    folder = tmp_path / "predictions"
    folder.mkdir()
    nullable = pa.schema([field.with_nullable(True) for field in schema.PREDICTIONS])
    pq.write_table(pa.table(columns, schema=nullable), folder / "part-00000.parquet")
    code = (
        "import os, shutil, signal, sys\n"
        "from deepfake_ray.storage import files\n"
        "folder = sys.argv[1]\n"
        "with files.new_file(f'{folder}/part-00001.parquet') as path:\n"
        "    data = open(f'{folder}/part-00000.parquet', 'rb').read()\n"
        "    open(path, 'wb').write(data[: len(data) // 2])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(folder)) == 2
    (temporary,) = set(os.listdir(folder)) - {"part-00000.parquet"}
    assert temporary.startswith(".")
    assert len(read_predictions(str(tmp_path))) == 1
    assert len(pads.dataset(str(folder), format="parquet").to_table()) == 1
    assert len(pd.read_parquet(folder)) == 1
    assert duckdb.sql(f"select count(*) from '{folder}/*.parquet'").fetchall() == [(1,)]
    files.delete_leftovers(str(folder))
    assert os.listdir(folder) == ["part-00000.parquet"]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("/a/b/", "/a/b"), ("file:///a/b", "/a/b"), ("s3://bucket/a b/", "s3://bucket/a b"), ("S3://b/k", "s3://b/k")],
)
def test_one_spelling(uri, expected):
    assert files.absolute(uri) == expected


def test_what_cannot_be_a_place_says_what_to_write():
    with pytest.raises(UserError, match=r"got 's3a://odd/plain'; write s3://odd/plain"):
        files.absolute("s3a://odd/plain")
    with pytest.raises(UserError, match=r"write s3://b/k"):
        files.absolute("S3N://b/k")
    with pytest.raises(UserError, match="copy the data"):
        files.absolute("https://example.org/x.png")
    with pytest.raises(UserError, match="this machine"):
        files.absolute("file://elsewhere/x.png")


def test_a_used_output_is_refused(tmp_path):
    outputs.require_new_output(str(tmp_path), resumable=True)
    outputs.require_new_output(str(tmp_path / "new"), resumable=True)
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match=r"output must be empty: .* holds x; .*--resume"):
        outputs.require_new_output(str(tmp_path), resumable=True)
    with pytest.raises(UserError, match="is a file"):
        outputs.require_new_output(str(tmp_path / "x"), resumable=True)
