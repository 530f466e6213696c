"""What comes of a file or object that cannot be read: by kind of file, and by status, never by words."""

import os
import socket
import threading
import time
from datetime import timedelta
from urllib.parse import unquote

import pytest
from s3_server import KEYS, Stub, error_body, send

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.fetch import fetch, too_many_bytes
from deepfake_ray.images.read_ahead import fetch_ahead
from deepfake_ray.storage import files, s3, stores


def error_of(uri, max_bytes=1000, timeout_s=5.0):
    with pytest.raises(ImageError) as caught:
        fetch(str(uri), max_bytes, timeout_s)
    return caught.value


# --- files


@pytest.fixture
def odd_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.symlink("/dev/zero", tmp_path / "endless.jpg")
    os.symlink("/dev/tty", tmp_path / "terminal.jpg")
    os.symlink("pipe.jpg", tmp_path / "link to pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        yield tmp_path


@pytest.mark.parametrize(
    "name", ["pipe.jpg", "folder.jpg", "endless.jpg", "terminal.jpg", "link to pipe.jpg", "socket.jpg"]
)
def test_only_regular_files_are_opened(odd_files, name):
    """simsong/bulk_extractor 52, MemPalace/mempalace 2221: a pipe hangs a scan; a device is read for ever."""
    began = time.monotonic()
    error = error_of(odd_files / name)
    assert (error.code, error.message) == (ErrorCode.STORAGE_ERROR, "not a regular file")
    assert time.monotonic() - began < 2


def test_no_read_goes_past_the_limit_whatever_the_size_says(tmp_path, monkeypatch):
    """Files of /proc say that they are empty; others grow while they are read."""
    with open("/proc/self/maps", "rb") as file:
        assert len(file.read()) > 1000
    assert os.stat("/proc/self/maps").st_size == 0
    assert error_of("/proc/self/maps", max_bytes=100).code == ErrorCode.TOO_LARGE
    assert fetch("/proc/self/status", 1 << 20).startswith(b"Name:")
    growing = tmp_path / "growing.jpg"
    growing.write_bytes(b"x" * 50)
    asked = os.fstat

    def grows(descriptor):
        found = asked(descriptor)
        with open(growing, "ab") as file:
            file.write(b"y" * 1000)
        return found

    monkeypatch.setattr(os, "fstat", grows)
    assert error_of(growing, max_bytes=100).code == ErrorCode.TOO_LARGE


def test_a_file_of_just_the_limit_is_read(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "b").write_bytes(b"")
    assert fetch(str(tmp_path / "a"), 100) == b"x" * 100
    assert error_of(tmp_path / "a", max_bytes=99).code == ErrorCode.TOO_LARGE
    assert fetch(str(tmp_path / "b"), 100) == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_a_file_that_may_not_be_read_is_forbidden(tmp_path):
    secret = tmp_path / "404 timeout.jpg"
    secret.write_bytes(b"x")
    secret.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and len(folder.parts) > 2:
            folder.chmod(0o755)
    os.seteuid(65534)
    try:
        error = error_of(secret)
    finally:
        os.seteuid(0)
    assert (error.code, error.message) == (ErrorCode.FORBIDDEN, "permission denied")


# --- objects

NAMES = ["403", "401", "timeout", "timed out", "404", "NoSuchKey", "TimedOut", "kind: Timeout", "status: 403,", "x"]
"""Of objects: words that stand for statuses, too, in the texts of libraries."""
EXPECTED = {
    "301": ErrorCode.STORAGE_ERROR, "400": ErrorCode.STORAGE_ERROR, "401": ErrorCode.FORBIDDEN,
    "403": ErrorCode.FORBIDDEN, "404": ErrorCode.NOT_FOUND, "412": ErrorCode.STORAGE_ERROR,
    "429": ErrorCode.STORAGE_ERROR, "500": ErrorCode.STORAGE_ERROR, "503": ErrorCode.STORAGE_ERROR,
    "cut": ErrorCode.STORAGE_ERROR, "slow": ErrorCode.TIMEOUT,
}  # fmt: skip
"""Behaviour of the server -> the one right code, whatever the object is called."""
S3_CODES = {"301": "PermanentRedirect", "403": "AccessDenied", "404": "NoSuchKey", "503": "SlowDown"}
TIMEOUT_S = 0.4


def misbehave(request):
    """`/bucket/BEHAVIOUR/NAME.jpg`"""
    _, _, behaviour, name = unquote(request.path.split("?")[0]).split("/", 3)
    if behaviour == "slow":
        time.sleep(3 * TIMEOUT_S)
        request.close_connection = True
    elif behaviour == "cut":
        send(request, 200, b"x" * 10, num_bytes=1000)
        request.close_connection = True
    else:
        # The server's own words hold the name, as AWS's do.
        send(request, int(behaviour), error_body(S3_CODES.get(behaviour, "InvalidRequest"), f"about {name}"))


@pytest.fixture
def served(monkeypatch):
    """Makes a stub the S3 of the environment; retries are few and quick."""
    started = []
    clear()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    def serve(answer, **environment):
        stub = Stub(answer)
        started.append(stub)
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": stub.url, "AWS_REGION": "us-east-1"} | environment).items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        return stub

    monkeypatch.setattr(stores, "OUTAGE", timedelta(seconds=0.1))
    monkeypatch.setattr(s3, "RETRIES", 1)
    yield serve
    clear()
    for stub in started:
        stub.close()


def clear():
    for cached in (stores.object_store, stores._region_of, s3._client):
        cached.cache_clear()


@pytest.mark.parametrize("folder", ["", "/"], ids=["obstore", "botocore"])  # an empty segment takes the other client
@pytest.mark.parametrize("behaviour", EXPECTED)
def test_codes_depend_on_the_status_alone(served, behaviour, folder):
    """Barre/ZeroFS 143: obstore's dump of an error holds `retry_timeout`; keys hold what they like."""
    served(misbehave)
    names = NAMES[:3] if behaviour in ("slow", "cut") else NAMES
    found = {name: error_of(f"s3://bucket/{behaviour}{folder}/{name}.jpg", timeout_s=TIMEOUT_S) for name in names}
    assert {name: error.code for name, error in found.items()} == dict.fromkeys(names, EXPECTED[behaviour])


def test_the_servers_words_are_kept(served):
    served(lambda request: send(request, 400, error_body("ExpiredToken", "The provided token has expired.")))
    for uri in ("s3://bucket/403.jpg", "s3://bucket//timeout.jpg"):
        error = error_of(uri)
        assert error.code == ErrorCode.STORAGE_ERROR
        assert "ExpiredToken" in error.message
        assert "token has expired" in error.message


def test_another_region_is_named(served):
    def elsewhere(request):
        extra = "<Region>eu-west-3</Region>"
        body = error_body("AuthorizationHeaderMalformed", "the region is wrong; expecting 'eu-west-3'", extra)
        send(request, 400, body, {"x-amz-bucket-region": "eu-west-3"})

    served(elsewhere)
    error = error_of("s3://bucket/timeout.jpg")
    assert error.code == ErrorCode.STORAGE_ERROR
    assert "set AWS_REGION=eu-west-3" in error.message


def test_requester_pays_is_asked_for_by_both_clients(served):
    def payer(request):
        paid = request.headers.get("x-amz-request-payer") == "requester"
        send(request, 200, b"picture") if paid else send(request, 403, error_body("AccessDenied"))

    served(payer)
    uris = ("s3://bucket/a.jpg", "s3://bucket//a.jpg")
    assert [error_of(uri).code for uri in uris] == [ErrorCode.FORBIDDEN] * 2
    clear()
    served(payer, AWS_REQUEST_PAYER="requester")
    assert [fetch(uri, 100) for uri in uris] == [b"picture"] * 2


def test_the_buckets_region_is_asked_once_where_the_environment_has_none(served, monkeypatch):
    """As on a machine of EC2: an instance profile, and no AWS_REGION."""
    stub = served(
        lambda request: send(request, 403, headers={"x-amz-bucket-region": "eu-west-3"}),
        AWS_ENDPOINT_URL="",
        AWS_REGION="",
    )
    monkeypatch.setattr(s3, "_OF_BUCKETS", stub.url)
    assert stores.s3_region("s3://far") == "eu-west-3"
    assert "eu-west-3" in repr(stores.object_store("s3://far").config)
    assert s3.client("s3://far").meta.region_name == "eu-west-3"
    assert files.filesystem("s3://far/x")[0].region == "eu-west-3"
    assert len(stub.requests) == 1
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert stores.s3_region("s3://other") == "us-west-2"
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_ENDPOINT_URL", stub.url)
    assert stores.s3_region("s3://other") == "us-east-1"
    assert len(stub.requests) == 1


# --- ahead


def test_what_is_fetched_ahead_keeps_within_its_budget():
    """40 files of 1 to 8 MB and a budget of 16 MB: in order, and never more than the budget and the one in use."""
    megabyte = 1 << 20
    sizes = [megabyte * (1 + i % 8) for i in range(40)]
    held, most, lock = {}, 0, threading.Lock()

    def read(position, max_bytes):
        nonlocal most
        if sizes[position] > max_bytes:
            raise too_many_bytes(sizes[position], max_bytes)
        with lock:
            held[position] = sizes[position]
            most = max(most, sum(held.values()))
        time.sleep(0.002)
        return bytes(sizes[position])

    for position, data in enumerate(fetch_ahead(read, len(sizes), 100 * megabyte, budget=16 * megabyte)):
        assert len(data) == sizes[position]
        with lock:
            held.pop(position)
    assert most <= (16 + 8 + 8) * megabyte


def test_failures_ahead_keep_their_places_and_limits():
    def read(position, max_bytes):
        if position == 1:
            raise ImageError(ErrorCode.FORBIDDEN, "no")
        if position == 2:
            raise too_many_bytes(7 << 20, max_bytes)
        if position == 3:
            raise MemoryError
        return b"x"

    found = list(fetch_ahead(read, 5, 6 << 20))
    assert (found[0], found[4]) == (b"x", b"x")
    assert [error.code for error in found[1:4]] == [ErrorCode.FORBIDDEN, ErrorCode.TOO_LARGE, ErrorCode.TOO_LARGE]
    assert found[2].message == f"{7 << 20} bytes, over the limit of {6 << 20}"


def test_whoever_stops_early_leaves_no_thread_waiting():
    before = threading.active_count()
    ahead = fetch_ahead(lambda position, max_bytes: bytes(4 << 20), 100, 100 << 20, budget=8 << 20)
    assert len(next(ahead)) == 4 << 20
    ahead.close()
    assert threading.active_count() == before
