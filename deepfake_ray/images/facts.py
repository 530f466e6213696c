"""What the files of images tell, read in a process that may die: a file on which a decoder hangs costs no run.

Knows no Ray.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from deepfake_ray.errors import ImageError
from deepfake_ray.images.decode import Limits, header
from deepfake_ray.images.fetch import fetch
from deepfake_ray.images.formats.containers import sniff
from deepfake_ray.images.loading import Loaded, decoder_bytes, fetched, forgetful, given_up
from deepfake_ray.images.perceptual_hash import perceptual_hash
from deepfake_ray.images.read_ahead import fetch_ahead
from deepfake_ray.processes.isolation import Isolated, Items
from deepfake_ray.storage.files import is_local

TIMEOUT_S = 60.0
"""For one image."""
IDLE_S = 5.0
"""After which the process ends: an audit asks again at once, and what follows wants the memory."""


def read_facts(uris: Sequence[str], limits: Limits) -> list[Loaded]:
    """What files tell, and what the picture is near to, in the order of `uris`; `error` where one cannot be read.

    A file that is no image has neither format nor size in pixels, nor a hash: it may be anybody's.
    """
    with _lock:
        found: list[Loaded] = _reader(limits)(list(uris))
        _close_when_idle()
    return found


class FactsReader:
    """Runs in a process of its own."""

    def __init__(self, limits: Limits):
        self._limits = limits

    def __call__(self, uris: Sequence[str], items: Items) -> list[Loaded]:
        """Facts of some files; `items` are positions among them."""
        wanted = [position for position in range(len(uris)) if position not in items.given_up]
        found = dict(zip(wanted, self._read([uris[i] for i in wanted], wanted, items), strict=True))
        for i, reason in items.given_up.items():
            error = given_up(reason)
            found[i] = Loaded(error=error, given_up=str(error))
        return [found[i] for i in range(len(uris))]

    def _read(self, uris: Sequence[str], positions: Sequence[int], items: Items) -> Iterator[Loaded]:
        if all(is_local(uri) for uri in uris):
            for uri, position in zip(uris, positions, strict=True):
                with items.at(position):
                    yield self._facts(fetched(uri, self._limits))
            return
        ahead = fetch_ahead(lambda i, most: fetch(uris[i], most), len(uris), self._limits.max_bytes)
        for data, position in zip(ahead, positions, strict=True):
            with items.at(position):
                yield self._facts(data)

    def _facts(self, data: bytes | ImageError) -> Loaded:
        if isinstance(data, ImageError):
            return Loaded(error=forgetful(data))
        if sniff(data) is None:
            return Loaded(num_bytes=len(data))
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            found = header(data)
            facts = {} if found is None else {**asdict(found), "phash": perceptual_hash(data, self._limits)}
        except MemoryError:
            facts = {}
        return Loaded(sha256=sha256, num_bytes=len(data), **facts)


# --- the process that Ray's worker shares among its tasks

_lock = threading.Lock()
_shared: tuple[Limits, Isolated] | None = None
_end: threading.Timer | None = None


def _reader(limits: Limits) -> Isolated:
    global _shared
    if _end is not None:
        _end.cancel()
    if _shared is not None and _shared[0] != limits:
        _close()
    if _shared is None:
        worker = Isolated(
            "deepfake_ray.images.facts:FactsReader", limits, timeout_s=TIMEOUT_S, decoder_bytes=decoder_bytes(limits)
        )
        _shared = limits, worker
    return _shared[1]


def _close_when_idle() -> None:
    global _end
    _end = threading.Timer(IDLE_S, _close_idle)
    _end.daemon = True
    _end.start()


def _close_idle() -> None:
    with _lock:
        _close()


def _close() -> None:
    global _shared
    if _shared is not None:
        _shared[1].close()
        _shared = None
