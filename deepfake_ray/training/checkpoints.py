"""A run's state, saved from rank 0 of Ray Train without stopping the loop."""

import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.train import CheckpointUploadMode

from deepfake_ray.storage import files

STATE_FILE = "state.pt"
VALIDATION_FILE = "validation.npz"
SCORE = "checkpoint_score"
"""The reported metric by which Ray Train keeps the best checkpoint, beside the last. Those of the middle of an epoch
have none, and are worse than all that have one."""


class Checkpoints:
    """Writes checkpoints to a local directory, and uploads them from a thread while the training goes on."""

    def __init__(self, uri: str):
        self._uri = uri
        self._place = ray.train.get_context().get_storage()
        self._idle = threading.Event()
        self._idle.set()

    def save(self, metrics: Mapping[str, Any], write: Callable[[Path], None]) -> None:
        """Report metrics with a checkpoint; all other ranks must report, too.

        Args:
            metrics: what is reported.
            write: fills the directory that becomes the checkpoint.
        """
        self._idle.wait()  # one at a time: a store that is slower than the training would fill the disk
        self._idle.clear()
        folder = tempfile.mkdtemp(prefix="checkpoint-")
        write(Path(folder))
        ray.train.report(
            dict(metrics),
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
            checkpoint_upload_fn=self._upload,
        )

    def _upload(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        # Not Ray's own upload, which gives up when the store fails once.
        try:
            files.upload_directory(checkpoint.path, files.join(self._uri, name))
        finally:
            self._idle.set()
        path = self._place.build_checkpoint_path_from_name(name)
        return ray.train.Checkpoint(path, filesystem=self._place.storage_filesystem)
