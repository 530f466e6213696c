"""One run at a time writes an output: while it does, `OUTPUT/_LOCK` says who.

Of a holder on this machine the process tells whether it lives still; of one elsewhere, its heartbeat does. An object
store without conditional writes gives no more than a best effort: who reads back what it wrote has the lock.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deepfake_ray import storage
from deepfake_ray.errors import JobError, UserError
from deepfake_ray.progress import duration, say

HEARTBEAT_S = 15.0
STALE_S = 60.0
"""A holder elsewhere whose heartbeat has not changed for so long is gone. Counted by the clock of who waits: those of
two machines may differ."""
DYING_S = 1.0
"""A process that was killed may take so long to be gone."""
SETTLE_S = 2.0
"""Without conditional writes: until another's write would be seen."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who writes an output: the content of its lock."""

    token: str
    """A name of its own for each run."""
    host: str
    machine: str
    """Differs where the process ids count something else: another machine, another boot, another container."""
    pid: int
    process_started: str | None
    """Tells a process from a later one with the same id. None: this system does not tell."""
    started_at: str

    @classmethod
    def this_process(cls) -> "Holder":
        """A holder that nobody is yet."""
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            process_started=_process_started(os.getpid()),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def of(cls, content: bytes) -> "Holder | None":
        """Of a lock's content; None if that says nothing."""
        try:
            found = json.loads(content)
            return cls(**{name: found[name] for name in cls.__dataclass_fields__})
        except (ValueError, KeyError, TypeError):
            return None

    def content(self, beat: int) -> bytes:
        """Of the lock, at a heartbeat."""
        return (json.dumps({**asdict(self), "heartbeat": beat}, indent=2) + "\n").encode()

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process that this one can look up."""
        return self.machine == _machine()

    def is_over(self, patience_s: float) -> bool:
        """Of a holder that is here: whether it ends within so long."""
        deadline = time.monotonic() + patience_s
        while self._lives():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True

    def _lives(self) -> bool:
        if _process_started(os.getpid()) is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 0)
                return True
            return False
        return _process_started(self.pid) == self.process_started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, begun {self.started_at}"


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _process_started(pid: int) -> str | None:
    """When a process was started, by the kernel's clock; None if it is gone, or this is no Linux."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


# --- where the lock is kept

Version = Hashable
"""Of what is there: another one for each write."""


class _Place(ABC):
    @abstractmethod
    def read(self) -> tuple[bytes, Version] | None: ...

    @abstractmethod
    def write(self, data: bytes, version: Version | None) -> bool:
        """Write if what is there has that version; None: if nothing is there. False: it has not."""

    @abstractmethod
    def delete(self, version: Version) -> None: ...

    def _has(self, data: bytes) -> bool:
        there = self.read()
        return there is not None and there[0] == data


class _LocalPlace(_Place):
    def __init__(self, output: str):
        self._folder = Path(output)
        self._path = self._folder / storage.LOCK

    def read(self) -> tuple[bytes, Version] | None:
        try:
            with open(self._path, "rb") as file:
                return file.read(), _version(file.fileno())
        except FileNotFoundError:
            return None

    def write(self, data: bytes, version: Version | None) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = storage.temporary_name(str(self._path))
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
        with contextlib.ExitStack() as files:
            try:
                file = files.enter_context(open(self._path, "rb"))
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


class _RemotePlace(_Place):
    def __init__(self, output: str):
        self._uri = storage.join(output, storage.LOCK)
        bucket, self._key = storage.split_uri(self._uri)
        self._store = storage.object_store(bucket)

    def read(self) -> tuple[bytes, Version] | None:
        import obstore

        try:
            found = obstore.get(self._store, self._key)
            return bytes(found.bytes()), _facts(found.meta)
        except (FileNotFoundError, obstore.exceptions.NotFoundError):
            return None
        except obstore.exceptions.BaseError as error:
            raise OSError(storage.first_line(error)) from error

    def write(self, data: bytes, version: Any) -> bool:
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
            raise OSError(storage.first_line(error)) from error
        time.sleep(SETTLE_S)
        return self._has(data)

    def delete(self, version: Version) -> None:
        there = self.read()
        if there is not None and there[1] == version:
            storage.delete(self._uri)


def _facts(meta: Any) -> Version:
    return tuple((name, meta.get(name)) for name in ("e_tag", "version"))


# --- the lock


class OutputLock:
    """The lock of an output, held by this run."""

    def __init__(self, output: str, place: _Place, holder: Holder):
        self._output, self._place, self._holder = output, place, holder
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="output-lock", daemon=True)

    def acquire(self) -> None:
        """Take the lock; waits for a holder elsewhere that may be gone.

        Raises:
            UserError: another run holds it.
        """
        seen: Version | None = None
        seen_at = 0.0
        mine = self._holder.content(0)
        while not self._place.write(mine, None):
            found = self._place.read()
            if found is None:
                continue
            other, other_version = Holder.of(found[0]), found[1]
            if other is not None and other.is_here:
                is_gone = other.is_over(DYING_S)
                if not is_gone:
                    raise _is_held(self._output, other)
            else:
                if seen is None:
                    seen, seen_at = other_version, time.monotonic()
                    who = other or "another run"
                    say(f"{self._output} was being written by {who}; is it still? Waiting {duration(STALE_S)} to see")
                elif seen != other_version:
                    raise _is_held(self._output, other)
                is_gone = time.monotonic() - seen_at >= STALE_S
            if is_gone and self._place.write(mine, other_version):
                say(f"{other or 'another run'} wrote {self._output} and is gone: this run goes on")
                break
            time.sleep(0 if is_gone else 1)
        self._thread.start()

    def require(self) -> None:
        """Make sure, before something is published, that the lock is this run's still.

        Raises:
            JobError: it is not: this process was held up for so long that another run took over.
        """
        holder, _ = self._there()
        if not self._is_mine(holder):
            raise JobError(
                f"{self._output} is no longer this run's: {holder or 'nobody'} has its {storage.LOCK}, after this "
                "process was held up; nothing more is written by it."
            )

    def mark_finished(self) -> None:
        """Write `_SUCCESS`, as the last of all, if the output is this run's still.

        Raises:
            JobError: it is not.
        """
        self.require()
        storage.mark_finished(self._output)

    def release(self) -> None:
        """Let others have it."""
        self._is_over.set()
        self._thread.join(timeout=HEARTBEAT_S)
        holder, version = self._there()
        if self._is_mine(holder):
            self._place.delete(version)

    def _there(self) -> tuple[Holder | None, Version]:
        found = self._place.read()
        return (None, None) if found is None else (Holder.of(found[0]), found[1])

    def _is_mine(self, holder: Holder | None) -> bool:
        return holder is not None and holder.token == self._holder.token

    def _keep(self) -> None:
        beat = 0
        while not self._is_over.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a storage that is away: at the next beat
                holder, version = self._there()
                if not self._is_mine(holder):
                    return  # it is another's: see `require`
                beat += 1
                self._place.write(self._holder.content(beat), version)


def _is_held(output: str, holder: Holder | None) -> UserError:
    return UserError(
        f"One run at a time writes an output: {output} is being written by {holder or 'another run'}; wait for it, or "
        "end it and add --resume, or name another output."
    )


@contextlib.contextmanager
def held(output: str) -> Iterator[OutputLock]:
    """Have an output for this run alone.

    Raises:
        UserError: another run has it, or it cannot be written.
        JobError: in the block, a file could not be read or written.
    """
    is_local = storage.is_local(output)
    is_new = is_local and not os.path.lexists(output)
    lock = OutputLock(output, _LocalPlace(output) if is_local else _RemotePlace(output), Holder.this_process())
    try:
        lock.acquire()
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"output must be a directory: {output} is a file; name another.") from error
    except OSError as error:
        raise UserError(
            f"output must be writable: {output}: {storage.first_line(error)}; check path and credentials."
        ) from error
    try:
        storage.delete_leftovers(output)
        yield lock
    except OSError as error:
        with contextlib.suppress(OSError):
            lock.require()  # another run, that took over, may be why
        raise JobError(f"{storage.first_line(error)}; mend the cause and add --resume") from error
    finally:
        try:
            lock.release()
        except OSError as error:
            say(f"warning: {output}/{storage.LOCK} stays ({storage.first_line(error)}); the next --resume removes it")
        if is_new:
            with contextlib.suppress(OSError):  # something was written
                os.rmdir(output)
