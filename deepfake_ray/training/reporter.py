"""Watches a training run from the driver: progress, history.csv, training.png, TensorBoard, MLflow."""

import csv
import io
import tempfile
import threading

import ray
from tensorboardX import SummaryWriter

from deepfake_ray.cluster.prometheus import RunMetrics
from deepfake_ray.cluster.session import Patience
from deepfake_ray.console import Progress, say
from deepfake_ray.evaluation import figures
from deepfake_ray.storage import files
from deepfake_ray.training.history import HistoryRow
from deepfake_ray.training.mlflow_run import MlflowRun
from deepfake_ray.training.worker import LoopSpec


class Watcher:
    """Follows the board from a thread: draws progress, and writes what there is to see of each epoch."""

    def __init__(self, spec: LoopSpec, output: str, tracker: MlflowRun | None):
        self._spec, self._output, self._tracker = spec, output, tracker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="training-progress", daemon=True)
        self._num_written = 0

    def __enter__(self) -> None:
        # A resumed run writes its epochs anew, and TensorBoard would show those of before twice.
        files.delete_directory(files.join(self._output, "tensorboard"))
        self._thread.start()

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._tracker:
            self._tracker.end(finished=failure is None)

    def _watch(self) -> None:
        total = self._spec.config.epochs * self._spec.num_train
        with (
            tempfile.TemporaryDirectory() as folder,
            SummaryWriter(folder) as events,
            Patience("train") as patience,
            Progress("train", total) as progress,
        ):
            metrics = RunMetrics("train", self._output)
            while True:
                stopping = self._stop.wait(0.5)
                try:
                    now, history, _ = ray.get(self._spec.board.read.remote())
                except ray.exceptions.RayError:
                    return
                if now:
                    patience.begun()
                    note = f"epoch {int(now['epoch']) + 1}/{self._spec.config.epochs}"
                    progress.update(now["done"], now["num_errors"], note)
                    metrics.update(now["done"], now["errors_by_code"], progress.rate.per_s)
                if len(history) > self._num_written:
                    try:
                        self._write(history, events, folder)
                    except OSError as error:  # a storage that fails for a moment must not end the training
                        say(f"warning: history.csv could not be written, trying again: {error}")
                if stopping:
                    return

    def _write(self, history: list[HistoryRow], events: SummaryWriter, folder: str) -> None:
        for row in history[self._num_written :]:
            say(
                f"epoch {int(row['epoch'])}: loss {row['train_loss']:.4f}, validation loss {row['val_loss']:.4f}, "
                f"accuracy {row['val_accuracy']:.4f}, AUC {row['val_auc']:.4f}; {row['images_per_s']:,.0f} images/s, "
                f"{row['data_wait_share']:.0%} waiting for data"
            )
            for name, value in _tagged(row).items():
                events.add_scalar(name, value, row["epoch"])
        events.flush()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        files.write_bytes(files.join(self._output, "history.csv"), text.getvalue().encode())
        files.write_bytes(files.join(self._output, "training.png"), figures.training_curves(history))
        files.upload_directory(folder, files.join(self._output, "tensorboard"))
        self._num_written = len(history)
        if self._tracker and (problem := self._tracker.log([_tagged(row) for row in history])):
            say(f"warning: MLflow could not be told, trying again with the next epoch: {problem}")


def _tagged(row: HistoryRow) -> dict[str, float]:
    return {_tag(name): value for name, value in row.items() if name != "epoch"}


def _tag(name: str) -> str:
    """TensorBoard's name of a column of history.csv: `val_auc` -> `val/auc`."""
    for group in ("train", "val"):
        if name.startswith(f"{group}_"):
            return f"{group}/{name.removeprefix(f'{group}_')}"
    return f"train/{name}"
