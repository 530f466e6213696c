"""What lies in a folder, under a bucket prefix, or is one file: page by page, in order, in bounded memory."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from deepfake_ray.console import say
from deepfake_ray.data import bucket_listing
from deepfake_ray.data.bucket_listing import PREFIXES_AT_ONCE as PREFIXES_AT_ONCE
from deepfake_ray.data.image_files import FILES as FILES
from deepfake_ray.data.image_files import ROWS_PER_PAGE as ROWS_PER_PAGE
from deepfake_ray.data.image_files import Pick as Pick
from deepfake_ray.data.image_files import is_left_out, is_output, page
from deepfake_ray.errors import UserError
from deepfake_ray.storage import files
from deepfake_ray.storage.errors import remedy, said

Names = tuple[pa.Array, pa.Array]
"""Of the files and of the folders in a folder, sorted."""


def files_in(place: str, *, at_once: int = PREFIXES_AT_ONCE) -> Iterator[pa.Table]:
    """Pages of `FILES`, at most `ROWS_PER_PAGE` rows each, in the order of the names; each file once.

    Hidden files, systems' own folders (`@eaDir`, `lost+found` ...) and outputs of earlier jobs are left out. A folder
    below the place that cannot be read costs no other: its row ends with `/`, and a line says it.

    Args:
        place: a folder, an `s3://` or `gs://` prefix, or one file.
        at_once: prefixes of S3 that are listed at the same time, where the keys have several. What one of them gives
            waits on the disk for its turn.

    Raises:
        UserError: no such place, or it cannot be listed.
    """
    _require_no_container(place)
    is_local = files.is_local(place)
    if is_local and not os.path.lexists(place):
        raise _absent(place)
    try:
        if not is_local:
            num_files = 0
            for listed in bucket_listing.list_remote(place, at_once):
                num_files += len(listed)
                yield listed
            if not num_files and not files.exists(place):
                raise _absent(place)
        elif os.path.isdir(place):
            yield from _Walk(place).pages()
        else:
            yield page([(os.path.basename(place), place, *_stat(os.fsencode(place)))])
    except bucket_listing.failures() as error:
        raise UserError(
            f"The images must be listable: {place} is not ({said(error)}); {remedy(place, error)}."
        ) from error


_CONTAINERS = {
    "an archive": (re.compile(r"\.(zip|tar|tgz|tbz2?|txz|7z|rar|gz|bz2|xz|zst)$"), "unpack it and give the folder"),
    "a video": (re.compile(r"\.(mp4|m4v|mov|avi|mkv|webm|mpe?g|wmv)$"), "videos are not read yet: take frames from it"),
    "a table of a kind that is not read": (
        re.compile(r"\.(jsonl?|ndjson|xlsx?|feather|arrow|orc|avro)$"),
        "write it as Parquet, as CSV with a column uri, or as .txt with a URI in each line",
    ),
}


def _require_no_container(place: str) -> None:
    """Refuse one file that holds images, or their names, in a way that is not read."""
    if files.is_local(place) and os.path.isdir(place):
        return
    for kind, (suffixes, advice) in _CONTAINERS.items():
        if suffixes.search(place.lower()):
            raise UserError(f"The images must be files of their own or in a table: {place} is {kind}; {advice}.")


def _absent(place: str) -> UserError:
    advice = "check the path"
    if re.search(r"[*?\[]", place):
        advice = "where it is a pattern, write it without quotes, or give the folder and --include 'PATTERN'"
    return UserError(f"The images must be there: {place} does not exist; {advice}.")


# --- this machine


@dataclass
class _Walk:
    """Goes through a folder: depth first, names in order, so that the same folder always gives the same manifest."""

    root: str
    _unreadable: list[tuple[str, OSError]] = field(default_factory=list)
    _num_links: int = 0
    _outputs: list[str] = field(default_factory=list)
    _elsewhere: set[tuple[int, int]] = field(default_factory=set)
    """Device and inode of folders outside the root that links led to."""

    def pages(self) -> Iterator[pa.Table]:
        """Pages of `FILES`.

        Raises:
            OSError: the root cannot be read.
        """
        self._top = os.fsencode(self.root)
        self._real_top = os.path.realpath(self._top)
        stack = [(b"", False)]  # and whether it lies outside the root
        while stack:
            folder, is_elsewhere = stack.pop()
            if folder:
                is_elsewhere = is_elsewhere or os.path.islink(os.path.join(self._top, folder))
                if is_elsewhere and self._is_listed_otherwise(folder):
                    self._num_links += 1
                    continue
            try:
                names, folders = self._names_in(os.path.join(self._top, folder))
            except OSError as error:
                if not folder:
                    raise
                self._unreadable.append((_text(folder), error))
                yield self._passed_over(folder)
                continue
            if folder and _is_output(names, folders):
                self._outputs.append(_text(folder))
                yield self._passed_over(folder)
                continue
            for start in range(0, len(names), ROWS_PER_PAGE):
                yield page([self._row(folder, name) for name in names[start : start + ROWS_PER_PAGE].to_pylist()])
            stack.extend((os.path.join(folder, name), is_elsewhere) for name in reversed(folders.to_pylist()))
        self._say()

    def _names_in(self, folder: bytes) -> Names:
        """Names as Arrow arrays: a tenth of Python's objects."""
        kinds: dict[bool, list[pa.Array]] = {False: [], True: []}
        pending: dict[bool, list[bytes]] = {False: [], True: []}
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_left_out(os.fsdecode(entry.name)):
                    continue
                is_folder = _is_folder(entry)
                pending[is_folder].append(entry.name)
                if len(pending[is_folder]) >= ROWS_PER_PAGE:
                    kinds[is_folder].append(pa.array(pending[is_folder], pa.large_binary()))
                    pending[is_folder] = []
        arrays = []
        for is_folder in (False, True):
            names = pa.concat_arrays([*kinds[is_folder], pa.array(pending[is_folder], pa.large_binary())])
            arrays.append(names.take(pc.sort_indices(names)))
        return arrays[0], arrays[1]

    def _is_listed_otherwise(self, folder: bytes) -> bool:
        """Whether a link, or a folder reached through one, leads to files that are listed at another place.

        Of several ways to a folder in the root, its own counts and links do not: they must not give it other labels.
        """
        path = os.path.join(self._top, folder)
        if os.path.islink(path):
            target = os.path.realpath(path)
            if _lies_in(self._real_top, target):
                return True
            if _lies_in(target, self._real_top) and not is_left_out(_text(os.path.relpath(target, self._real_top))):
                return True
        try:
            found = os.stat(path)
        except OSError:
            return False
        identity = found.st_dev, found.st_ino
        if identity in self._elsewhere:
            return True
        self._elsewhere.add(identity)
        return False

    def _row(self, folder: bytes, name: bytes) -> tuple[Any, ...]:
        relative = os.path.join(folder, name)
        text = _text(relative)
        return text, os.path.join(self.root, text), *_stat(os.path.join(self._top, relative))

    def _passed_over(self, folder: bytes) -> pa.Table:
        text = _text(folder)
        return page([(f"{text}/", f"{os.path.join(self.root, text)}/", None, None, None)])

    def _say(self) -> None:
        if self._unreadable:
            folder, error = self._unreadable[0]
            say(
                f"passed over in {self.root}: {_folders(len(self._unreadable))} that cannot be read, such as {folder} "
                f"({error.strerror or said(error)}); they are among the manifest's other files"
            )
        if self._outputs:
            say(
                f"passed over in {self.root}: {_folders(len(self._outputs))} that a job of this program wrote, such as "
                f"{self._outputs[0]}"
            )
        if self._num_links:
            say(f"passed over in {self.root}: {self._num_links:,} links to folders that are listed at another place")


def _is_output(names: pa.Array, folders: pa.Array) -> bool:
    if max(len(names), len(folders)) >= ROWS_PER_PAGE:
        return False
    return is_output(*([os.fsdecode(name) for name in found.to_pylist()] for found in (names, folders)))


def _folders(number: int) -> str:
    return f"{number:,} folder{'' if number == 1 else 's'}"


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder that is not ours: reading it will say why not
        return False


def _lies_in(path: bytes, folder: bytes) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _text(path: bytes) -> str:
    """The path; a byte that is not UTF-8 becomes `\\xNN`, which `fetch` understands."""
    return path.decode("utf-8", "backslashreplace")


def _stat(path: bytes) -> tuple[int | None, None, datetime | None]:
    """num_bytes, etag, mtime."""
    asked: tuple[Callable[[bytes], os.stat_result], ...] = (os.stat, os.lstat)  # for a dangling link, its own
    for ask in asked:
        try:
            found = ask(path)
        except OSError:
            continue
        return found.st_size, None, datetime.fromtimestamp(found.st_mtime, UTC)
    return None, None, None  # it went meanwhile: it is listed, and reading it will say why not
