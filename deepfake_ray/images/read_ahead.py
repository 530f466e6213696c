"""Files fetched ahead of their use, in order, within a budget of bytes."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from deepfake_ray.errors import ErrorCode, ImageError
from deepfake_ray.images.fetch import REMOTE_REQUESTS, TooManyBytesError, too_many_bytes

BYTES_AHEAD = 256 << 20
"""Of files that are fetched and not yet used, in each process."""
_LEAST_GUESS = 4 << 20
_SIZES_REMEMBERED = 32

Fetched = bytes | ImageError


class _Room:
    """Hands out the budget. Whoever is next to be used always gets what it needs, so that nobody waits in a ring."""

    def __init__(self, budget: int):
        self._budget = budget
        self._taken: dict[int, int] = {}
        self._next = 0
        self._sizes: deque[int] = deque([_LEAST_GUESS], maxlen=_SIZES_REMEMBERED)
        self._changed = threading.Condition()

    def take(self, position: int, num_bytes: int | None = None) -> int:
        """Wait until there is room for a file of that size, or of the largest lately; returns how much."""
        with self._changed:
            self._taken.pop(position, None)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._fits(position, num_bytes or self._guess()))
            self._taken[position] = num_bytes or self._guess()
            return self._taken[position]

    def _guess(self) -> int:
        return max(_LEAST_GUESS, *self._sizes)

    def _fits(self, position: int, num_bytes: int) -> bool:
        return position <= self._next or sum(self._taken.values()) + num_bytes <= self._budget

    def has(self, position: int, num_bytes: int) -> None:
        """The file is fetched: the rest of what it took is free again."""
        with self._changed:
            self._sizes.append(num_bytes)
            self._taken[position] = num_bytes
            self._changed.notify_all()

    def is_next(self, position: int) -> None:
        """That file is wanted; those before it are used."""
        with self._changed:
            self._next = position
            self._taken = {taken: size for taken, size in self._taken.items() if taken >= position}
            self._changed.notify_all()


def fetch_ahead(
    fetch: Callable[[int, int], bytes], number: int, max_bytes: int, budget: int = BYTES_AHEAD
) -> Iterator[Fetched]:
    """What `fetch(position, max_bytes)` gives for each position, in order; an `ImageError` where it raises one.

    Requests run ahead, at most twice as many as threads. Work is handed out in bursts, one item for each thread: a
    request that is alone on the way costs client and server twice as much CPU as one of many
    (benchmarks/results/scoring_2cpu_20261122.md). How large a file is, is known when it begins to come: one that is
    larger than the room that was taken for it is asked for again when there is enough.
    """
    room = _Room(budget)

    def fetched(position: int) -> Fetched:
        wanted: int | None = None
        while True:
            allowed = min(max_bytes, room.take(position, wanted))
            try:
                data = fetch(position, allowed)
            except TooManyBytesError as error:
                if error.num_bytes <= max_bytes:
                    wanted = error.num_bytes
                    continue
                room.has(position, 0)
                return too_many_bytes(error.num_bytes, max_bytes)
            except ImageError as error:
                room.has(position, 0)
                return error
            except MemoryError:
                room.has(position, 0)
                return ImageError(ErrorCode.TOO_LARGE, "reading it ran out of memory")
            room.has(position, len(data))
            return data

    pending: deque[Future[Fetched]] = deque()
    handed_out = 0
    with ThreadPoolExecutor(REMOTE_REQUESTS) as threads:
        try:
            for position in range(number):
                room.is_next(position)
                if handed_out < number and len(pending) <= REMOTE_REQUESTS:
                    burst = range(handed_out, min(handed_out + REMOTE_REQUESTS, number))
                    pending.extend(threads.submit(fetched, each) for each in burst)
                    handed_out = burst.stop
                yield pending.popleft().result()
        finally:
            room.is_next(number)  # nobody waits any more
            for future in pending:
                future.cancel()
