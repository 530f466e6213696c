"""The training of one Ray Train worker: the loop, and the board on which it says how it goes."""

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from deepfake_ray import metrics, models, schema
from deepfake_ray.allocator import keep_freed_memory
from deepfake_ray.config import TrainConfig
from deepfake_ray.images import Limits, Preparation
from deepfake_ray.pipeline import Batch, TrainingTables, training_batches
from deepfake_ray.placement import TrainingPlacement
from deepfake_ray.sampling import Sampler

HistoryRow = dict[str, Any]
STATE_FILE = "state.pt"
VALIDATION_FILE = "validation.npz"
CHECKPOINT_SCORE = "checkpoint_score"
"""The reported metric by which Ray Train keeps the best checkpoint."""


@dataclass(frozen=True, kw_only=True)
class LoopSpec:
    """All that a worker needs: settings resolved on the driver, and references to what is shared."""

    config: TrainConfig
    preparation: Preparation
    learning_rate: float
    global_batch_size: int
    num_train: int
    num_validation: int
    placement: TrainingPlacement
    tables: TrainingTables
    initial_state: ray.ObjectRef
    board: ray.actor.ActorHandle


@ray.remote(num_cpus=0)
class Board:
    """Carries what rank 0 says to the driver, which draws the bar and keeps history.csv current."""

    def __init__(self) -> None:
        self._now: dict[str, Any] = {}
        self._history: list[HistoryRow] = []
        self._failure = ""

    def update(self, now: dict[str, Any]) -> None:
        """Where the run is."""
        self._now = now

    def end_epoch(self, history: list[HistoryRow]) -> None:
        """The history so far; whole, so that a resumed worker's is right too."""
        self._history = history

    def fail(self, message: str) -> None:
        """The run ends here, on purpose: starting it again would end the same way."""
        self._failure = message

    def read(self) -> tuple[dict[str, Any], list[HistoryRow], str]:
        """Now, the history, and why the run failed, if it did."""
        return self._now, self._history, self._failure


@dataclass
class _Tally:
    """Sums over the images of an epoch on one rank, added over the ranks, then divided once."""

    num_images: int = 0
    num_errors: int = 0
    first_error: str = ""
    loss_sum: float = 0.0
    num_correct: float = 0.0
    wait_s: float = 0.0

    def __add__(self, other: "_Tally") -> "_Tally":
        return _Tally(
            self.num_images + other.num_images,
            self.num_errors + other.num_errors,
            self.first_error or other.first_error,
            self.loss_sum + other.loss_sum,
            self.num_correct + other.num_correct,
            self.wait_s + other.wait_s,
        )


@dataclass(frozen=True)
class _Shard:
    """What one rank contributes to an epoch."""

    train: _Tally
    validation: _Tally
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]


class _Loop:
    """The training of one worker."""

    def __init__(self, spec: LoopSpec):
        train_context = ray.train.get_context()
        self.spec, self.config = spec, spec.config
        self.rank, self.world_size = train_context.get_world_rank(), train_context.get_world_size()
        # Ray sets the threads to the worker's logical CPUs; decoding leaves most of the others idle.
        torch.set_num_threads(spec.placement.torch_threads)
        self.device = ray.train.torch.get_device()
        network = models.build(self.config.arch)
        network.load_state_dict(ray.get(spec.initial_state))
        self.detector = models.Detector(network, spec.preparation)
        self.detector.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = ray.train.torch.prepare_model(self.detector)
        self.sampler = Sampler(
            num_train=spec.num_train,
            num_validation=spec.num_validation,
            global_batch_size=spec.global_batch_size,
            world_size=self.world_size,
            rank=self.rank,
            seed=self.config.seed,
        )
        optimizer = torch.optim.Adam if self.config.recipe == "baseline" else torch.optim.AdamW
        self.optimizer = optimizer(
            self.detector.parameters(),
            lr=spec.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        num_steps = self.config.epochs * self.sampler.steps_per_epoch
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, num_steps, self.config.warmup_share)
        )
        self.autocast = models.autocast(self.device, self.config.precision)
        self.history: list[HistoryRow] = []
        self._said = 0.0

    def run(self) -> None:
        """Train to the end, from the last checkpoint if there is one."""
        self._restore()
        batches = training_batches(
            self.sampler,
            self.spec.tables,
            self.spec.preparation,
            Limits(max_bytes=self.config.max_image_bytes, max_pixels=self.config.max_image_pixels),
            recipe=self.config.recipe,
            first_epoch=len(self.history),
            num_epochs=self.config.epochs,
            cpus=self.spec.placement.data_cpus_per_worker,
        )
        for epoch in range(len(self.history), self.config.epochs):
            if stops_early(self.history, self.config.early_stopping_patience):
                break
            started = time.monotonic()
            # Seeded anew each epoch, so that a resumed run draws the dropout it would have drawn.
            torch.manual_seed((self.config.seed * 1_000_003 + epoch) * 1_009 + self.rank)
            train = self._train_epoch(epoch, batches)
            validation, logits, labels = self._validate(epoch, batches)
            shards = self._gather(_Shard(train, validation, logits, labels))
            row, problem = self._summarise(epoch, shards, time.monotonic() - started)
            if problem:
                if self.rank == 0:
                    ray.get(self.spec.board.fail.remote(problem))
                return
            self.history.append(row)
            self._report(row, shards)

    def _train_epoch(self, epoch: int, batches: Iterator[Batch]) -> _Tally:
        self.model.train()
        tally = _Tally()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        num_correct = torch.zeros((), dtype=torch.float64, device=self.device)
        for step in range(self.sampler.steps_per_epoch):
            batch = self._next(batches, tally)
            num_images = len(batch.labels)
            # A batch of unreadable images alone still takes part in DDP's exchange, with a loss of nothing.
            images, labels = self._to_device(batch) if num_images else self._nothing()
            with self.autocast:
                outputs = self.model(images)
            loss = F.cross_entropy(outputs.float(), labels, reduction="mean")
            (loss if num_images else loss * 0).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
            if num_images:
                tally.num_images += num_images
                loss_sum += loss.detach() * num_images
                num_correct += (outputs.detach().argmax(1) == labels).sum()
            self._say(epoch, tally, step + 1 == self.sampler.steps_per_epoch)
        tally.loss_sum, tally.num_correct = loss_sum.item(), num_correct.item()
        return tally

    def _validate(self, epoch: int, batches: Iterator[Batch]) -> tuple[_Tally, NDArray[np.float32], NDArray[np.int64]]:
        self._share_buffers()
        self.detector.eval()
        tally = _Tally()
        logits, labels = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        seen = 0
        while seen < self.sampler.num_validation_rows:
            batch = self._next(batches, tally)
            seen += len(batch.labels) + batch.num_errors
            if not len(batch.labels):
                continue
            with torch.inference_mode(), self.autocast:
                outputs = self.detector(self._to_device(batch)[0])
            logits.append(models.fake_logit(outputs).float().cpu().numpy())
            labels.append(batch.labels)
            tally.num_images += len(batch.labels)
        return tally, np.concatenate(logits), np.concatenate(labels)

    def _next(self, batches: Iterator[Batch], tally: _Tally) -> Batch:
        asked = time.monotonic()
        batch = next(batches)
        tally.wait_s += time.monotonic() - asked
        tally.num_errors += batch.num_errors
        tally.first_error = tally.first_error or batch.first_error
        return batch

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        # Indexing made these arrays copies, so that torch may own them.
        images, labels = torch.from_numpy(batch.images), torch.from_numpy(batch.labels)
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _nothing(self) -> tuple[Tensor, Tensor]:
        size = self.spec.preparation.image_size
        images = torch.zeros((2, size, size, 3), dtype=torch.uint8, device=self.device)
        return images, torch.zeros(2, dtype=torch.int64, device=self.device)

    def _share_buffers(self) -> None:
        """Rank 0's batch-norm statistics are the ones that are saved, so all ranks validate with them."""
        if self.world_size > 1:
            for buffer in self.detector.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _gather(self, shard: _Shard) -> list[_Shard]:
        if self.world_size == 1:
            return [shard]
        shards: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(shards, shard)
        return shards

    def _summarise(self, epoch: int, shards: list[_Shard], epoch_s: float) -> tuple[HistoryRow, str]:
        train = sum((shard.train for shard in shards), _Tally())
        validation = sum((shard.validation for shard in shards), _Tally())
        for name, tally in (("training", train), ("validation", validation)):
            share = tally.num_errors / max(1, tally.num_errors + tally.num_images)
            if share > self.config.max_error_share:
                return {}, (
                    f"{share:.1%} of the {name} images cannot be read, over --max-error-share "
                    f"{self.config.max_error_share:g}; the first: {tally.first_error}"
                )
        if not math.isfinite(train.loss_sum):
            return {}, (
                f"the training loss is no longer finite in epoch {epoch}; lower --learning-rate (it was "
                f"{self.spec.learning_rate:g})"
            )
        logits = np.concatenate([shard.logits for shard in shards])
        labels = np.concatenate([shard.labels for shard in shards])
        if len(np.unique(labels)) < 2:
            return {}, f"no {'fake' if not labels.any() else 'real'} validation image could be read"
        scores = metrics.threshold_free(labels, logits, 1.0)
        row: HistoryRow = {
            "epoch": epoch + 1,
            "learning_rate": self.scheduler.get_last_lr()[0],
            "train_loss": train.loss_sum / max(1, train.num_images),
            "train_accuracy": train.num_correct / max(1, train.num_images),
            "val_loss": float(scores["log_loss"] or 0.0),
            "val_accuracy": float(((logits >= 0) == (labels == schema.FAKE)).mean()),
            "val_auc": float(scores["roc_auc"] or 0.0),
            "epoch_s": epoch_s,
            "images_per_s": (train.num_images + validation.num_images) / epoch_s,
            "data_wait_share": (train.wait_s + validation.wait_s) / self.world_size / epoch_s,
            "num_train_errors": train.num_errors,
            "num_val_errors": validation.num_errors,
        }
        return row, ""

    def _report(self, row: HistoryRow, shards: list[_Shard]) -> None:
        """Hand over metrics and, from rank 0, a checkpoint; every rank must do so equally often."""
        # Of equally good epochs the first is the best, as `best_epoch` has it; Ray alone would keep any.
        reported = {**row, CHECKPOINT_SCORE: row["val_auc"] - 1e-9 * row["epoch"]}
        if self.rank != 0:
            ray.train.report(reported)
            return
        with tempfile.TemporaryDirectory() as folder:
            state = {
                "network": self.detector.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "history": self.history,
            }
            torch.save(state, Path(folder, STATE_FILE))
            np.savez(
                Path(folder, VALIDATION_FILE),
                logits=np.concatenate([shard.logits for shard in shards]),
                labels=np.concatenate([shard.labels for shard in shards]),
            )
            ray.train.report(reported, checkpoint=ray.train.Checkpoint.from_directory(folder))
        self.spec.board.end_epoch.remote(self.history)

    def _restore(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, STATE_FILE), map_location=self.device, weights_only=True)
        self.detector.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history = state["history"]

    def _say(self, epoch: int, tally: _Tally, last: bool) -> None:
        now = time.monotonic()
        if self.rank == 0 and (last or now - self._said > 0.5):
            self._said = now
            done = epoch * self.spec.num_train + min(tally.num_images * self.world_size, self.spec.num_train)
            self.spec.board.update.remote(
                {"epoch": epoch, "done": done, "num_errors": tally.num_errors * self.world_size}
            )


def train_loop(spec: dict[str, LoopSpec]) -> None:
    """What each Ray Train worker runs."""
    keep_freed_memory()
    _Loop(spec["spec"]).run()


def learning_rate_factor(step: int, num_steps: int, warmup_share: float) -> float:
    """Linear warm-up to 1, then a cosine to 0 (Loshchilov and Hutter 2016, arXiv 1608.03983)."""
    warmup = round(warmup_share * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def best_epoch(history: list[HistoryRow]) -> int:
    """Index of the first epoch with the greatest validation AUC."""
    return max(range(len(history)), key=lambda index: (history[index]["val_auc"], -index))


def stops_early(history: list[HistoryRow], patience: int) -> bool:
    """Whether `patience` epochs have passed without a better validation AUC."""
    return bool(history) and len(history) - 1 - best_epoch(history) >= patience
