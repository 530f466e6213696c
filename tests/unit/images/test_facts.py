"""The audit's reading of files: what they tell, and that none of them costs more than itself."""

import os
import zlib
from struct import pack

import numpy as np
import simplejpeg

from deepfake_ray.errors import ErrorCode
from deepfake_ray.images import facts
from deepfake_ray.images.decode import Limits
from deepfake_ray.images.facts import FactsReader, read_facts
from deepfake_ray.images.loading import Loader
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.processes.isolation import Isolated

LIMITS = Limits(max_bytes=10**7, max_pixels=10**8)


def jpeg(seed=0):
    return simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_facts_of_good_and_of_odd_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "text.jpg").write_text("root:x:0:0:")
    uris = [str(tmp_path / name) for name in ("pipe.jpg", "a.jpg", "none.jpg", "text.jpg")]
    pipe, good, none, text = read_facts(uris, LIMITS)
    assert (pipe.error.code, pipe.error.message) == (ErrorCode.STORAGE_ERROR, "not a regular file")
    assert (good.format, good.width, good.height, good.num_bytes) == ("jpeg", 32, 32, len(jpeg()))
    assert good.phash is not None
    assert none.error.code == ErrorCode.NOT_FOUND
    assert (text.num_bytes, text.sha256, text.format) == (11, None, None)


def test_a_decoder_that_hangs_or_crashes_costs_its_image(tmp_path):
    for name in ("a", "hang", "b", "crash", "c"):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg() + name.encode())
    uris = [str(tmp_path / f"{name}.jpg") for name in ("a", "hang", "b", "crash", "c")]
    reader = Isolated("test_facts:Fragile", LIMITS, timeout_s=3)
    found = reader(uris)
    reader.close()
    assert [image.format for image in found] == ["jpeg", None, "jpeg", None, "jpeg"]
    assert (found[1].error.code, found[3].error.code) == (ErrorCode.TIMEOUT, ErrorCode.DECODER_CRASHED)
    assert [image.given_up is not None for image in found] == [False, True, False, True, False]


class Fragile(FactsReader):
    """Does what a bad decoder does, in its process."""

    def _facts(self, data):
        import signal
        import time

        if isinstance(data, bytes) and data.endswith(b"hang"):
            time.sleep(60)
        if isinstance(data, bytes) and data.endswith(b"crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super()._facts(data)


def test_the_process_serves_many_calls_and_ends_when_nobody_asks(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "IDLE_S", 60.0)
    (tmp_path / "a.jpg").write_bytes(jpeg())
    pids = set()
    for _ in range(3):
        read_facts([str(tmp_path / "a.jpg")], LIMITS)
        pids.add(facts._shared[1]._process.pid)
    (pid,) = pids
    facts._close_idle()
    assert not os.path.exists(f"/proc/{pid}")
    assert read_facts([str(tmp_path / "a.jpg")], LIMITS)[0].format == "jpeg"
    facts._close_idle()


def test_nothing_is_told_of_what_is_no_image_but_its_size(tmp_path):
    """A table may name any file of the machine."""
    (tmp_path / "passwd").write_text("root:x:0:0:")
    (tmp_path / "broken.jpg").write_bytes(jpeg()[:300])
    loader = Loader(limits=LIMITS, preparation=Preparation(image_size=32))
    other, broken = loader.load_all([str(tmp_path / "passwd"), str(tmp_path / "broken.jpg")])
    assert (other.error.code, other.num_bytes, other.sha256) == (ErrorCode.NOT_AN_IMAGE, 11, None)
    assert broken.sha256 is not None
    assert broken.error.__traceback__ is broken.error.__cause__ is None


def png_of_one_colour(width, height):
    """Some KB that are decoded to 4 bytes a pixel."""
    compressor = zlib.compressobj(1)
    row = b"\0" + b"\x40\x80\xc0\xff" * width
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()

    def chunk(kind, body):
        return pack(">I", len(body)) + kind + body + pack(">I", zlib.crc32(kind + body))

    header = pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


class Memory:
    """Loads one image in a process that keeps what it frees; MiB before and after, and the error."""

    def __init__(self, _):
        from deepfake_ray.processes.allocator import keep_freed_memory

        keep_freed_memory()

    def __call__(self, path, items):
        loader = Loader(limits=LIMITS, preparation=Preparation(image_size=32))
        before = self.resident()
        with items.at(0):
            (image,) = loader.load_all([path])
        return before, self.resident(), None if image.error is None else str(image.error)

    def resident(self):
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


def test_a_huge_image_is_given_back_or_refused_for_its_memory(tmp_path):
    """A small file of 16 million pixels takes some 330 MB; afterwards the process is as it was."""
    (tmp_path / "huge.png").write_bytes(png_of_one_colour(4100, 4000))
    worker = Isolated("test_facts:Memory", None, decoder_bytes=2 << 30)
    before, after, error = worker(str(tmp_path / "huge.png"))
    worker.close()
    assert error is None
    assert after - before < 60
    worker = Isolated("test_facts:Memory", None, decoder_bytes=100 << 20)
    _, after, error = worker(str(tmp_path / "huge.png"))
    worker.close()
    assert error == "too_large: the decoder ran out of memory"
    assert after < 200
