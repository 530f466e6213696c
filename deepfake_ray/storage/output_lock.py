"""One run at a time writes an output: while it does, `OUTPUT/_LOCK` says who.

Of a holder on this machine the process tells whether it lives still; of one elsewhere, its heartbeat does.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from deepfake_ray.console import duration, say
from deepfake_ray.errors import JobError, UserError
from deepfake_ray.storage import files, outputs
from deepfake_ray.storage.errors import first_line
from deepfake_ray.storage.lock_places import LocalPlace, Place, RemotePlace, Version

HEARTBEAT_S = 15.0
STALE_S = 60.0
"""A holder elsewhere whose heartbeat has not changed for so long is gone. Counted by the clock of who waits: those of
two machines may differ."""
DYING_S = 1.0
"""A process that was killed may take so long to be gone."""


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


class OutputLock:
    """The lock of an output, held by this run."""

    def __init__(self, output: str, place: Place, holder: Holder):
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
                f"{self._output} is no longer this run's: {holder or 'nobody'} has its {outputs.LOCK}, after this "
                "process was held up; nothing more is written by it."
            )

    def mark_finished(self) -> None:
        """Write `_SUCCESS`, as the last of all, if the output is this run's still.

        Raises:
            JobError: it is not.
        """
        self.require()
        outputs.mark_finished(self._output)

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
def hold_output(output: str) -> Iterator[OutputLock]:
    """Have an output for this run alone.

    Raises:
        UserError: another run has it, or it cannot be written.
        JobError: in the block, a file could not be read or written.
    """
    is_local = files.is_local(output)
    is_new = is_local and not os.path.lexists(output)
    lock = OutputLock(output, LocalPlace(output) if is_local else RemotePlace(output), Holder.this_process())
    try:
        lock.acquire()
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"output must be a directory: {output} is a file; name another.") from error
    except OSError as error:
        raise UserError(
            f"output must be writable: {output}: {first_line(error)}; check path and credentials."
        ) from error
    try:
        files.delete_leftovers(output)
        yield lock
    except OSError as error:
        with contextlib.suppress(OSError):
            lock.require()  # another run, that took over, may be why
        raise JobError(f"{first_line(error)}; mend the cause and add --resume") from error
    finally:
        try:
            lock.release()
        except OSError as error:
            say(f"warning: {output}/{outputs.LOCK} stays ({first_line(error)}); the next --resume removes it")
        if is_new:
            with contextlib.suppress(OSError):  # something was written
                os.rmdir(output)
