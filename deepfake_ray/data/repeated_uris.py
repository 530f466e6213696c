"""Rows that name a URI again: the first one stays, whatever the number of rows."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from deepfake_ray.console import say
from deepfake_ray.errors import UserError

EXAMPLES = 3
_SECOND_KEY = "fedcba9876543210"
_CHECKED = ("label", "split")
_UNKNOWN = -1


def hashes_of(uris: pa.ChunkedArray) -> NDArray[np.uint64]:
    """64 bits of each URI: what is kept of all rows to notice a repetition."""
    return _hashes(uris, "0123456789abcdef")  # pandas' own


def _hashes(uris: pa.ChunkedArray, key: str) -> NDArray[np.uint64]:
    found: NDArray[np.uint64] = pd.util.hash_array(uris.to_numpy(), hash_key=key)
    return found


def find_repeated(hashes: Iterable[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The hashes that are there twice or more, each once and sorted."""
    keys = np.sort(np.concatenate([np.empty(0, np.uint64), *hashes]))
    return np.unique(keys[1:][keys[1:] == keys[:-1]])


class Distinct:
    """Lets the first row of each URI pass; holds some 30 bytes a URI that is repeated.

    A second hash tells URIs apart that share the first one, as one pair in some 10^9 rows does.
    """

    def __init__(self, suspects: NDArray[np.uint64]):
        """Args: suspects: `repeated` of the hashes of all rows."""
        self._suspects = suspects
        self._seen = np.zeros(len(suspects), bool)
        self._second = np.zeros(len(suspects), np.uint64)
        self._values = {name: np.full(len(suspects), _UNKNOWN, np.int64) for name in _CHECKED}
        self._codes: dict[str | None, int] = {None: _UNKNOWN}
        self.num_repeated = 0
        self._num_differing = 0
        self._num_late = 0
        self._examples: list[str] = []

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows (`schema.MANIFEST`) without those whose URI came before."""
        hashes = hashes_of(rows["uri"])
        position = np.searchsorted(self._suspects, hashes)
        position[position == len(self._suspects)] = 0
        chosen = np.flatnonzero(self._suspects[position] == hashes) if len(self._suspects) else np.empty(0, np.int64)
        if not len(chosen):
            return rows
        suspects = rows.take(pa.array(chosen))
        second = _hashes(suspects["uri"], _SECOND_KEY)
        columns = {name: suspects[name].to_pylist() for name in _CHECKED}
        keep = np.ones(len(rows), bool)
        for i, (row, place) in enumerate(zip(chosen, position[chosen], strict=True)):
            is_again = bool(self._seen[place])
            if not self._seen[place]:
                self._seen[place], self._second[place] = True, second[i]
            elif self._second[place] == second[i]:
                keep[row] = False
                self.num_repeated += 1
            else:
                continue  # another URI
            self._check(place, {name: columns[name][i] for name in _CHECKED}, suspects["uri"], i, is_again=is_again)
        return rows.filter(pa.array(keep))

    def _check(
        self, place: int, given: dict[str, str | None], uris: pa.ChunkedArray, i: int, *, is_again: bool
    ) -> None:
        for name, value in given.items():
            code = self._codes.setdefault(value, len(self._codes))
            known = self._values[name][place]
            if _UNKNOWN not in (code, known) and code != known:
                self._num_differing += 1
                if len(self._examples) < EXAMPLES:
                    first = next(text for text, of in self._codes.items() if of == known)
                    self._examples.append(f"{uris[i].as_py()} ({name} {first} and {value})")
            elif known == _UNKNOWN:
                self._num_late += is_again and code != _UNKNOWN
                self._values[name][place] = code

    def require_agreement(self) -> None:
        """To be called after the last row. Says where a label or split is lost with the row that had it.

        Raises:
            UserError: a URI came again with another label or split.
        """
        if self._num_differing:
            raise UserError(
                f"An image that is named again must have the same label and split: {self._num_differing:,} rows have "
                f"another, such as {', '.join(self._examples)}; keep one row of each."
            )
        if self._num_late:
            say(
                f"{self._num_late:,} labels or splits are left out: the first row of their image has none, and it "
                "counts; name the place that has them first"
            )
