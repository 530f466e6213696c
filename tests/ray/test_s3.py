"""Against a real S3 server."""

import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import simplejpeg
from checkout import ROOT
from s3_server import LIMITED_KEYS, Server

from deepfake_ray.data import manifest
from deepfake_ray.data.listing import files_in
from deepfake_ray.errors import ErrorCode, ImageError, UserError
from deepfake_ray.images.fetch import fetch
from deepfake_ray.storage import files, outputs, stores
from deepfake_ray.storage.s3 import _client, client
from deepfake_ray.storage.stores import object_store


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = Server(tmp_path_factory.mktemp("weed"))
    found.start()
    yield found
    found.kill()


@pytest.fixture(scope="module")
def s3(server):
    saved = dict(os.environ)
    os.environ.update(server.environment)
    stores.object_store.cache_clear()
    _client.cache_clear()
    yield server.filesystem("bucket", "secret")
    os.environ.clear()
    os.environ.update(saved)


def put(fs, key, data):
    with fs.open_output_stream(f"bucket/{key}") as stream:
        stream.write(data)


def test_listing_keeps_keys_literally_and_gives_sizes_and_etags(s3):
    names = ["Real/a b.jpg", "Real/c#d.jpg", "Real/e%20f.jpg", "Fake/g+h.jpg", "i?j&k.jpg", "l'm\".jpg", "ü/ñ.jpg"]
    for name in [*names, "notes.txt"]:
        put(s3, f"in/{name}", name.encode())
    listed = manifest.list_images("s3://bucket/in/")
    rows = {row["uri"]: row for row in listed.table.to_pylist()}
    assert set(rows) == {f"s3://bucket/in/{name}" for name in names}
    assert list(listed.other_files) == ["s3://bucket/in/notes.txt"]
    for uri, row in rows.items():
        content = uri.removeprefix("s3://bucket/in/").encode()
        assert row["num_bytes"] == len(content)
        assert row["etag"]
        assert fetch(uri, 1000) == content
    assert manifest.list_images("s3://bucket/in/Real/a b.jpg").table["num_bytes"].to_pylist() == [12]


def test_a_listing_has_many_pages_and_several_prefixes_at_once(s3):
    """2,500 keys in one prefix are three pages; the order is that of the names, however many are listed at once."""
    folders = (("a", 2500), ("b", 3), ("c", 1100))
    with ThreadPoolExecutor(16) as threads:
        keys = [f"many/{folder}/{i:05d}.jpg" for folder, number in folders for i in range(number)]
        list(threads.map(lambda key: put(s3, key, b"x"), [*keys, "many/top.jpg"]))
    expected = ["top.jpg", *(f"a/{i:05d}.jpg" for i in range(2500)), *(f"b/{i:05d}.jpg" for i in range(3)),
                *(f"c/{i:05d}.jpg" for i in range(1100))]  # fmt: skip
    at_once = [name for page in files_in("s3://bucket/many") for name in page["relative"].to_pylist()]
    assert at_once == expected
    one_by_one = [name for page in files_in("s3://bucket/many", at_once=1) for name in page["relative"].to_pylist()]
    assert sorted(one_by_one) == sorted(expected)
    limited = [len(page.rows) for page in manifest.pages_of(["s3://bucket/many/a"], limit=1200)]
    assert sum(limited) == 1200


def test_keys_that_are_no_clean_path(s3):
    """Control characters and empty segments, as careless writers leave them."""
    for key in ("odd/a\nb.jpg", "odd/\x7fc.jpg", "odd//d.jpg"):
        client("s3://bucket").put_object(Bucket="bucket", Key=key, Body=key.encode())
    found = {uri: fetch(uri, 100) for page in files_in("s3://bucket/odd") for uri in page["uri"].to_pylist()}
    assert found == {
        "s3://bucket/odd/a\nb.jpg": b"odd/a\nb.jpg",
        "s3://bucket/odd/\x7fc.jpg": b"odd/\x7fc.jpg",
        "s3://bucket/odd/d.jpg": b"odd//d.jpg",  # so this server names it
    }
    assert fetch("s3://bucket/odd//d.jpg", 100) == b"odd//d.jpg"


def code(uri, max_bytes=1000, timeout_s=5.0):
    with pytest.raises(ImageError) as caught:
        fetch(uri, max_bytes, timeout_s)
    return caught.value.code


@pytest.fixture
def fresh_clients():
    """Clients read the environment once."""
    stores.object_store.cache_clear()
    _client.cache_clear()
    yield
    stores.object_store.cache_clear()
    _client.cache_clear()


def test_failures_keep_their_reason(s3, monkeypatch, fresh_clients):
    put(s3, "one.jpg", b"12345")
    s3.create_dir("secret")
    with s3.open_output_stream("secret/one.jpg") as stream:
        stream.write(b"12345")
    assert code("s3://bucket/none.jpg") == ErrorCode.NOT_FOUND
    assert code("s3://bucket//none.jpg") == ErrorCode.NOT_FOUND
    assert code("s3://nowhere/one.jpg") == ErrorCode.NOT_FOUND
    assert code("s3://bucket/one.jpg", max_bytes=4) == ErrorCode.TOO_LARGE
    for name, value in LIMITED_KEYS.items():
        monkeypatch.setenv(name, value)
    stores.object_store.cache_clear()
    assert fetch("s3://bucket/one.jpg", 10) == b"12345"
    assert code("s3://secret/one.jpg") == ErrorCode.FORBIDDEN
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    stores.object_store.cache_clear()
    _client.cache_clear()
    assert code("s3://bucket/one.jpg") == ErrorCode.FORBIDDEN
    with pytest.raises(UserError, match="credentials"):
        manifest.list_images("s3://bucket")


def test_a_server_that_does_not_answer_is_a_timeout(monkeypatch, fresh_clients):
    """A socket that accepts and says nothing."""
    import socket
    from datetime import timedelta

    monkeypatch.setattr(stores, "OUTAGE", timedelta(seconds=2))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        assert code("s3://bucket/one.jpg", timeout_s=0.5) == ErrorCode.TIMEOUT


def test_no_such_bucket_is_said(s3):
    with pytest.raises(UserError, match="s3://nowhere"):
        manifest.list_images("s3://nowhere/images")


def test_storage_writes_reads_and_lists(s3):
    files.write_json("s3://bucket/out/a b.json", {"x": 1})
    assert files.read_json("s3://bucket/out/a b.json") == {"x": 1}
    assert files.list_names("s3://bucket/out") == ["a b.json"]
    assert files.exists("s3://bucket/out/a b.json")
    assert not files.exists("s3://bucket/out/b.json")
    assert files.list_names("s3://bucket/none") == []


@pytest.mark.slow
@pytest.mark.ray
def test_the_whole_job_from_s3_to_s3(s3, sample_folder, ray_2_cpus):
    """Train, score and evaluate with data, model and output in a bucket; workers get the keys at start."""
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
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    rows = pq.read_table("bucket/scores/predictions", filesystem=s3)
    assert len(rows) == len(set(rows["uri"].to_pylist())) == 80
    assert set(rows["status"].to_pylist()) == {"ok"}
    assert files.read_json(f"{place}/evaluation/metrics.json")["num_scored"] == 80
    for output in ("run", "scores", "evaluation"):
        assert outputs.is_finished(f"{place}/{output}")


def start_scoring(*flags):
    command = [sys.executable, str(ROOT / "jobs" / "score.py"), *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_chunks(fs, output, number, job):
    deadline = time.monotonic() + 120
    while len(fs.get_file_info(pafs.FileSelector(f"{output}/chunks", allow_not_found=True))) < number:
        assert time.monotonic() < deadline
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_outlives_its_server_and_its_driver(s3, server, trained):
    """The server is killed in mid-run and started again; then the driver is killed, and the run resumed."""
    rng = np.random.default_rng(0)
    for i in range(600):
        put(s3, f"live/{i:04d}.jpg", simplejpeg.encode_jpeg(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)))
    files.upload_directory(str(trained / "model"), "s3://bucket/live-model")
    flags = ["--images", "s3://bucket/live", "--model", "s3://bucket/live-model", "--output", "s3://bucket/live-out",
             "--batch-size", "1"]  # fmt: skip
    job = start_scoring(*flags)
    wait_for_chunks(s3, "bucket/live-out", 3, job)
    server.kill()
    time.sleep(3)
    server.start()
    server.filesystem("bucket")
    wait_for_chunks(s3, "bucket/live-out", 8, job)
    job.kill()
    job.wait()
    assert not outputs.is_finished("s3://bucket/live-out")
    s3.delete_file("bucket/live/0599.jpg")  # between listing and fetching: of the last chunk
    job = start_scoring(*flags, "--resume")
    _, said = job.communicate(timeout=240)
    assert job.returncode == 0, said
    assert "are scored already" in said
    rows = pq.read_table("bucket/live-out/predictions", filesystem=s3)
    assert len(rows) == len(set(rows["uri"].to_pylist())) == 600
    assert Counter(rows["error_code"].to_pylist()) == Counter({None: 599, "not_found": 1})
    assert files.list_names("s3://bucket/live-out") == ["_SUCCESS", "manifest", "predictions", "run.json"]


@pytest.mark.ray
def test_wrong_keys_make_no_million_error_rows(s3, trained, ray_2_cpus, tmp_path):
    """The listing is a local table, so that only the fetching meets the wrong keys."""
    table = tmp_path / "list.txt"
    table.write_text("".join(f"s3://secret/{i}.jpg\n" for i in range(3000)))
    flags = ["--images", str(table), "--model", str(trained / "model"), "--output", str(tmp_path / "o")]
    with_keys = os.environ | LIMITED_KEYS
    command = [sys.executable, str(ROOT / "jobs" / "score.py"), *flags]
    done = subprocess.run(command, env=with_keys, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    assert "the storage failed to give" in done.stderr
    assert "forbidden" in done.stderr
    assert "Mend the cause and add --resume" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("is_conditional", [True, False])
def test_one_run_at_a_time_writes_an_output(s3, monkeypatch, is_conditional):
    """By conditional writes; where the store refuses these, by reading back what was written."""
    import obstore

    from deepfake_ray.errors import JobError
    from deepfake_ray.storage import lock_places, output_lock
    from deepfake_ray.storage.output_lock import Holder, hold_output

    monkeypatch.setattr(output_lock, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(output_lock, "STALE_S", 0.5)
    monkeypatch.setattr(output_lock, "DYING_S", 0.1)
    monkeypatch.setattr(lock_places, "SETTLE_S", 0.05)
    if not is_conditional:
        put = obstore.put

        def without_conditions(*arguments, mode=None, **options):
            if mode is not None:
                raise obstore.exceptions.NotSupportedError("501 Not Implemented")
            return put(*arguments, **options)

        monkeypatch.setattr(obstore, "put", without_conditions)
    output = f"s3://bucket/locked-{is_conditional}"
    place = files.join(output, outputs.LOCK)
    with hold_output(output) as lock:
        outputs.require_new_output(output, resumable=True)
        time.sleep(0.5)
        lock.require()
        with pytest.raises(UserError, match=f"is being written by process {os.getpid()} on"), hold_output(output):
            pass
        files.write_bytes(f"{output}/x", b"")
    assert files.list_names(output) == ["x"]
    # A run that was killed here; one elsewhere that is gone; one that took over meanwhile.
    files.write_bytes(place, Holder.this_process().content(0).replace(b'started": "', b'started": "9'))
    with hold_output(output):
        pass
    elsewhere = Holder.this_process().content(0).replace(b'machine": "', b'machine": "another ')
    files.write_bytes(place, elsewhere)
    with hold_output(output) as lock:
        files.write_bytes(place, elsewhere)
        time.sleep(0.3)
        with pytest.raises(JobError, match="is no longer this run's"):
            lock.mark_finished()
    assert files.list_names(output) == ["_LOCK", "x"]


def test_an_output_that_may_not_be_written_is_said(s3, monkeypatch):
    from deepfake_ray.storage.output_lock import hold_output

    with monkeypatch.context() as patch:
        for name, value in LIMITED_KEYS.items():
            patch.setenv(name, value)
        object_store.cache_clear()
        with pytest.raises(UserError, match="output must be writable: s3://secret/o"), hold_output("s3://secret/o"):
            pass
    object_store.cache_clear()
