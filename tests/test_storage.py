import os

import pytest

from deepfake_ray import storage
from deepfake_ray.errors import UserError


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    place = str(tmp_path / "a" / "b.json")
    storage.write_bytes(place, b"first")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        storage.write_bytes(place, b"second")
    assert storage.read_bytes(place) == b"first"
    assert storage.list_names(str(tmp_path / "a")) == ["b.json"]


def test_what_a_killed_writer_leaves_is_not_read(tmp_path):
    import pyarrow as pa
    import pyarrow.dataset as pads
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1]}), tmp_path / "part-0.parquet")
    (tmp_path / ".0123.tmp").write_bytes(b"half a file")
    assert pads.dataset(str(tmp_path), format="parquet").to_table()["x"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("/a/b/", "/a/b"), ("file:///a/b", "/a/b"), ("s3://bucket/a b/", "s3://bucket/a b"), ("S3://b/k", "s3://b/k")],
)
def test_one_spelling(uri, expected):
    assert storage.absolute(uri) == expected


def test_a_used_output_is_refused(tmp_path):
    storage.require_new_output(str(tmp_path), resumable=True)
    storage.require_new_output(str(tmp_path / "new"), resumable=True)
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match=r"output must be empty: .* holds x; .*--resume"):
        storage.require_new_output(str(tmp_path), resumable=True)
    with pytest.raises(UserError, match="is a file"):
        storage.require_new_output(str(tmp_path / "x"), resumable=True)
