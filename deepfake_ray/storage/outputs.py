"""The directories that jobs write: new or resumable, and finished or not."""

import re

from deepfake_ray.errors import UserError
from deepfake_ray.storage.files import TEMPORARY, delete, exists, join, list_names, write_bytes

SUCCESS = "_SUCCESS"
LOCK = "_LOCK"
"""Who writes an output, while it is written: see `output_lock`."""


def is_finished(output: str) -> bool:
    """Whether a job finished this output."""
    return exists(join(output, SUCCESS))


def mark_finished(output: str) -> None:
    """Write `_SUCCESS`: all that the job promises is there."""
    write_bytes(join(output, SUCCESS), b"")


def mark_unfinished(output: str) -> None:
    """Remove `_SUCCESS`, before what a finished output holds is changed."""
    if is_finished(output):
        delete(join(output, SUCCESS))


def require_new_output(output: str, *, resumable: bool) -> None:
    """Refuse an output directory that has something in it.

    Raises:
        UserError: it is not empty.
    """
    # The lock is this run's own, or will refuse it; of those who ask for it, temporary files come and go.
    names = [name for name in list_names(output) if name != LOCK and not re.fullmatch(rf"\..*{TEMPORARY}", name)]
    if names:
        hint = "name a new directory, or add --resume to go on with it" if resumable else "name a new directory"
        raise UserError(f"output must be empty: {output} holds {', '.join(names[:5])}; {hint}.")
