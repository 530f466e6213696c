"""Against a real S3 server: seaweedfs, from the package registry, on the loopback address."""

import json
import os
import socket
import subprocess
import time

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from deepfake_ray import manifest, storage
from deepfake_ray.errors import ErrorCode, ImageError, UserError

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return port if port < 50_000 else port - 20_000  # gRPC listens 10,000 above


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weed")
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": "key", "secretKey": "secret"}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "id.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    s3_port, master, volume, filer = (free_port() for _ in range(4))
    command = [
        "weed", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
        f"-s3.port={s3_port}", f"-s3.config={folder / 'id.json'}", f"-master.port={master}",
        f"-volume.port={volume}", f"-filer.port={filer}", "-master.volumeSizeLimitMB=64", "-volume.max=50",
    ]  # fmt: skip
    import sys

    command[0] = os.path.join(os.path.dirname(sys.executable), "weed")
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    saved = dict(os.environ)
    os.environ.update(KEYS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{s3_port}", AWS_REGION="us-east-1")
    try:
        fs = pafs.S3FileSystem(
            endpoint_override=f"http://127.0.0.1:{s3_port}", region="us-east-1", allow_bucket_creation=True
        )
        for _ in range(60):
            try:
                fs.create_dir("bucket")
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((folder / "log").read_text()[-2000:])
        yield fs
    finally:
        server.terminate()
        server.wait()
        os.environ.clear()
        os.environ.update(saved)


def put(fs, key, data):
    with fs.open_output_stream(f"bucket/{key}") as stream:
        stream.write(data)


def test_listing_keeps_keys_literally_and_gives_sizes_and_etags(s3):
    keys = ["in/Real/a b.jpg", "in/Real/c#d.jpg", "in/Real/e%20f.jpg", "in/Fake/g+h.jpg", "in/notes.txt"]
    for key in keys:
        put(s3, key, key.encode())
    listed = manifest.list_images("s3://bucket/in/")
    rows = {row["uri"]: row for row in listed.table.to_pylist()}
    assert set(rows) == {f"s3://bucket/{key}" for key in keys[:4]}
    for uri, row in rows.items():
        assert row["num_bytes"] == len(uri.removeprefix("s3://bucket/"))
        assert row["etag"]
    from deepfake_ray.fetch import fetch

    for uri in rows:
        assert fetch(uri, 1000) == uri.removeprefix("s3://bucket/").encode()


def test_failures_keep_their_reason(s3, monkeypatch):
    from deepfake_ray.fetch import fetch, object_store

    def code(uri, max_bytes=1000):
        with pytest.raises(ImageError) as caught:
            fetch(uri, max_bytes)
        return caught.value.code

    put(s3, "one.jpg", b"12345")
    assert code("s3://bucket/none.jpg") == ErrorCode.NOT_FOUND
    assert code("s3://bucket/one.jpg", max_bytes=4) == ErrorCode.TOO_LARGE
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    object_store.cache_clear()
    assert code("s3://bucket/one.jpg") == ErrorCode.FORBIDDEN
    with pytest.raises(UserError, match="check"):
        manifest.list_images("s3://bucket")
    object_store.cache_clear()


def test_no_such_bucket_is_said(s3):
    with pytest.raises(UserError, match="s3://nowhere"):
        manifest.list_images("s3://nowhere/images")


def test_storage_writes_reads_and_lists(s3):
    storage.write_json("s3://bucket/out/a b.json", {"x": 1})
    assert storage.read_json("s3://bucket/out/a b.json") == {"x": 1}
    assert storage.list_names("s3://bucket/out") == ["a b.json"]
    assert storage.exists("s3://bucket/out/a b.json")
    assert not storage.exists("s3://bucket/out/b.json")
    assert storage.list_names("s3://bucket/none") == []


@pytest.mark.ray
def test_the_whole_job_from_s3_to_s3(s3, sample_folder, ray_2_cpus):
    """Train, score and evaluate with data, model and output in a bucket; workers get the keys at start."""
    environment = dict(KEYS, AWS_ENDPOINT_URL=os.environ["AWS_ENDPOINT_URL"], AWS_REGION="us-east-1")
    import sys

    from conftest import ROOT

    for path in sample_folder.rglob("*.jpg"):
        put(s3, f"sample/{path.relative_to(sample_folder)}", path.read_bytes())
    place = "s3://bucket"
    jobs = [
        ["train", "--data", f"{place}/sample", "--output", f"{place}/run", "--epochs", "1", "--limit", "160"],
        [
            "score",
            "--images",
            f"{place}/sample/Test",
            "--model",
            f"{place}/run/model",
            "--output",
            f"{place}/scores",
        ],
        [
            "evaluate",
            "--data",
            f"{place}/sample",
            "--model",
            f"{place}/run/model",
            "--output",
            f"{place}/evaluation",
        ],
    ]
    for job, *flags in jobs:
        done = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *flags],
            capture_output=True, text=True, env=os.environ | environment, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    rows = pq.read_table("bucket/scores/predictions", filesystem=s3)
    assert len(rows) == len(set(rows["uri"].to_pylist())) == 80
    assert set(rows["status"].to_pylist()) == {"ok"}
    assert storage.read_json(f"{place}/evaluation/metrics.json")["num_scored"] == 80
    for output in ("run", "scores", "evaluation"):
        assert storage.is_finished(f"{place}/{output}")
