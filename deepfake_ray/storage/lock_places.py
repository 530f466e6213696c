"""Where the lock of an output is kept: a file or an object that changes only if it is as one has seen it.

An object store without conditional writes gives no more than a best effort: who reads back what it wrote has the lock.
"""

import contextlib
import fcntl
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

from deepfake_ray.storage import files, outputs
from deepfake_ray.storage.errors import first_line
from deepfake_ray.storage.stores import object_store

SETTLE_S = 2.0
"""Without conditional writes: until another's write would be seen."""

Version = Hashable
"""Of what is there: another one for each write."""


class Place(ABC):
    """Holds the lock of an output."""

    @abstractmethod
    def read(self) -> tuple[bytes, Version] | None:
        """What is there, and its version; None if nothing is."""

    @abstractmethod
    def write(self, data: bytes, version: Version | None) -> bool:
        """Write if what is there has that version; None: if nothing is there. False: it has not."""

    @abstractmethod
    def delete(self, version: Version) -> None:
        """Remove what is there, if it has that version."""

    def _has(self, data: bytes) -> bool:
        there = self.read()
        return there is not None and there[0] == data


class LocalPlace(Place):
    """A file on this machine, or on a file system that is mounted here."""

    def __init__(self, output: str):
        self._folder = Path(output)
        self._path = self._folder / outputs.LOCK

    def read(self) -> tuple[bytes, Version] | None:
        """See `Place`."""
        try:
            with open(self._path, "rb") as file:
                return file.read(), _version(file.fileno())
        except FileNotFoundError:
            return None

    def write(self, data: bytes, version: Version | None) -> bool:
        """See `Place`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = files.temporary_name(str(self._path))
        try:
            Path(temporary).write_bytes(data)
            if version is None:
                self._link(temporary, data)
            else:
                with self._unchanged(version) as is_unchanged:
                    if is_unchanged:
                        os.replace(temporary, self._path)
        except (FileExistsError, FileNotFoundError):  # another was first; or tidied up, who has it now
            return False
        finally:
            Path(temporary).unlink(missing_ok=True)
        return self._has(data)

    def delete(self, version: Version) -> None:
        """See `Place`."""
        with self._unchanged(version) as is_unchanged:
            if is_unchanged:
                self._path.unlink(missing_ok=True)

    def _link(self, temporary: str, data: bytes) -> None:
        try:
            os.link(temporary, self._path)  # unlike a file that is opened anew, never seen empty
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError:  # a file system without links
            with open(self._path, "xb") as file:
                file.write(data)

    @contextlib.contextmanager
    def _unchanged(self, version: Version) -> Iterator[bool]:
        """Whether the lock has that version; nobody else who asks so changes it in the block."""
        with contextlib.ExitStack() as opened:
            try:
                file = opened.enter_context(open(self._path, "rb"))
            except FileNotFoundError:
                yield False
                return
            with contextlib.suppress(OSError):  # a file system without such locks
                fcntl.flock(file, fcntl.LOCK_EX)
            there = self.read()
            yield there is not None and there[1] == version


def _version(descriptor: int) -> Version:
    found = os.fstat(descriptor)
    return found.st_ino, found.st_mtime_ns, found.st_size


class RemotePlace(Place):
    """An object."""

    def __init__(self, output: str):
        self._uri = files.join(output, outputs.LOCK)
        bucket, self._key = files.split_uri(self._uri)
        self._store = object_store(bucket)

    def read(self) -> tuple[bytes, Version] | None:
        """See `Place`."""
        import obstore

        try:
            found = obstore.get(self._store, self._key)
            return bytes(found.bytes()), _facts(found.meta)
        except (FileNotFoundError, obstore.exceptions.NotFoundError):
            return None
        except obstore.exceptions.BaseError as error:
            raise OSError(first_line(error)) from error

    def write(self, data: bytes, version: Any) -> bool:
        """See `Place`."""
        import obstore

        known = obstore.exceptions
        mode = "create" if version is None else {name: value for name, value in version if value is not None}
        try:
            obstore.put(self._store, self._key, data, mode=mode)
        except (known.AlreadyExistsError, known.PreconditionError):
            return self._has(data)  # a request that was repeated, its first answer lost, finds what it wrote itself
        except (known.BaseError, NotImplementedError):
            return self._write_and_look(data, version)
        return True

    def _write_and_look(self, data: bytes, version: Version | None) -> bool:
        import obstore

        there = self.read()
        if (None if there is None else there[1]) != version:
            return False
        try:
            obstore.put(self._store, self._key, data)
        except obstore.exceptions.BaseError as error:
            raise OSError(first_line(error)) from error
        time.sleep(SETTLE_S)
        return self._has(data)

    def delete(self, version: Version) -> None:
        """See `Place`."""
        there = self.read()
        if there is not None and there[1] == version:
            files.delete(self._uri)


def _facts(meta: Any) -> Version:
    return tuple((name, meta.get(name)) for name in ("e_tag", "version"))
