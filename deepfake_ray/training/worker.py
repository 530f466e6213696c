"""The training of one Ray Train worker."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepfake_ray.cluster.placement import TrainingPlacement
from deepfake_ray.config import TrainConfig
from deepfake_ray.images.decode import Limits
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models import networks
from deepfake_ray.processes.allocator import keep_freed_memory
from deepfake_ray.training.batches import Batch, TrainingTables, training_batches
from deepfake_ray.training.checkpoints import SCORE, STATE_FILE, VALIDATION_FILE, Checkpoints
from deepfake_ray.training.gradients import backward
from deepfake_ray.training.history import HistoryRow, Shard, Tally, problem_of, stops_early, summarise
from deepfake_ray.training.optimization import (
    cosine_schedule,
    keep_statistics,
    loss_sum,
    make_optimizer,
    train_head_alone,
)
from deepfake_ray.training.read_tasks import read_in_tasks
from deepfake_ray.training.sampler import Position, Sampler

Part = TypeVar("Part")

# Rank 0's statistics are shared before they are used, see `_share_buffers`, not before each step; and gradients are
# not copied back from where they were exchanged.
_DDP = {"broadcast_buffers": False, "gradient_as_bucket_view": True}


@dataclass(frozen=True, kw_only=True)
class LoopSpec:
    """All that a worker needs: settings resolved on the driver, and references to what is shared."""

    config: TrainConfig
    preparation: Preparation
    learning_rate: float
    global_batch_size: int
    num_train: int
    num_validation: int
    class_weights: tuple[float, ...]
    precision: str
    """bf16 or fp32; the last layer is in fp32."""
    checkpoints_uri: str
    placement: TrainingPlacement
    tables: TrainingTables
    initial_state: ray.ObjectRef
    board: ray.actor.ActorHandle


class _Loop:
    """The training of one worker."""

    def __init__(self, spec: LoopSpec):
        train_context = ray.train.get_context()
        self.spec, self.config = spec, spec.config
        self.rank, self.world_size = train_context.get_world_rank(), train_context.get_world_size()
        # Ray sets the threads to the worker's logical CPUs; decoding leaves most of the others idle.
        torch.set_num_threads(spec.placement.torch_threads)
        self.device = ray.train.torch.get_device()
        network = networks.build(self.config.arch)
        network.load_state_dict(ray.get(spec.initial_state))
        networks.real_fp32()
        networks.keep_head_in_fp32(network, self.config.arch)
        self.detector = networks.Detector(network, spec.preparation)
        self.detector.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = self.detector
        self.class_weights = torch.tensor(spec.class_weights, device=self.device)
        self.sampler = Sampler(
            num_train=spec.num_train,
            num_validation=spec.num_validation,
            global_batch_size=spec.global_batch_size,
            world_size=self.world_size,
            rank=self.rank,
            seed=self.config.seed,
        )
        self.optimizer = make_optimizer(
            network,
            self.config.arch,
            self.config.recipe,
            learning_rate=spec.learning_rate,
            lr_backbone=self.config.lr_backbone,
            weight_decay=self.config.weight_decay,
        )
        num_steps = self.config.epochs * self.sampler.steps_per_epoch
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, cosine_schedule(num_steps, self.config.warmup_share)
        )
        self.autocast = networks.autocast(self.device, spec.precision)
        self.history: list[HistoryRow] = []
        self.position, self.tally, self.elapsed_s = Position(), Tally(), 0.0
        self.checkpoints = Checkpoints(spec.checkpoints_uri)
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
            first=self.position,
            num_epochs=self.config.epochs,
            run=read_in_tasks(
                self.spec.placement.data_cpus_per_worker, self.spec.placement.data_label, world_size=self.world_size
            ),
        )
        prepared_for = None
        for epoch in range(self.position.epoch, self.config.epochs):
            if stops_early(self.history, self.config.early_stopping_patience):
                break
            started = time.monotonic() - self.elapsed_s
            head_alone = epoch < self.config.freeze_backbone_epochs
            if prepared_for is not head_alone:
                train_head_alone(self.detector.network, self.config.arch, head_alone)
                # Anew, because DDP looks once at what needs gradients.
                self.model = ray.train.torch.prepare_model(self.detector, parallel_strategy_kwargs=_DDP)
                prepared_for = head_alone
            self._train_epoch(epoch, batches, started, head_alone=head_alone)
            validation, logits, labels = self._validate(epoch, batches)
            shards = self._gather(Shard(self.tally, validation, logits, labels))
            if problem := problem_of(shards, self.config.max_error_share):
                if self.rank == 0:
                    ray.get(self.spec.board.fail.remote(f"in epoch {epoch + 1}, {problem}"))
                return
            learning_rate = float(self.scheduler.get_last_lr()[0])
            row = summarise(epoch + 1, shards, learning_rate, time.monotonic() - started)
            self.history.append(row)
            self.position, self.tally, self.elapsed_s = Position(epoch + 1), Tally(), 0.0
            self._end_epoch(row, shards)

    def _train_epoch(self, epoch: int, batches: Iterator[Batch], started: float, *, head_alone: bool) -> None:
        """All steps of an epoch from `self.position` on, counted in `self.tally`."""
        self.model.train()
        if head_alone:
            keep_statistics(self.detector.network)
        loss = torch.tensor(self.tally.loss_sum, dtype=torch.float64, device=self.device)
        num_correct = torch.tensor(self.tally.num_correct, dtype=torch.float64, device=self.device)
        every, last_step = self.config.checkpoint_every_steps, self.sampler.steps_per_epoch - 1
        for step in range(self.position.step, last_step + 1):
            # Seeded anew each step, so that a resumed run draws the dropout it would have drawn.
            self._seed(_seed_of(self.config.seed, epoch, step, self.rank))
            batch = self._next(batches, self.tally, epoch, True, self.sampler.step_rows(epoch, step))
            step_loss, step_correct = self._backward(batch)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
            self.tally.num_images += len(batch.labels)
            loss += step_loss
            num_correct += step_correct
            self._say(epoch, step)
            if every and (step + 1) % every == 0 and step != last_step:
                self.tally.loss_sum, self.tally.num_correct = loss.item(), num_correct.item()
                self._save_step(Position(epoch, step + 1), time.monotonic() - started)
        self.tally.loss_sum, self.tally.num_correct = loss.item(), num_correct.item()

    def _seed(self, seed: int) -> None:
        # Not torch.manual_seed: for each device that is not there it keeps the call, with its traceback, for later.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gradients of one step; returns the sum of the losses, and how many images were told right."""

        def loss_of(outputs: Tensor, labels: Tensor) -> Tensor:
            return loss_sum(outputs, labels, self.class_weights, self.config.label_smoothing)

        images, labels = self._to_device(batch)
        return backward(
            self.model,
            images,
            labels,
            share=self.sampler.share,
            micro_batch_size=self.config.micro_batch_size,
            loss_of=loss_of,
            autocast=self.autocast,
        )

    def _validate(self, epoch: int, batches: Iterator[Batch]) -> tuple[Tally, NDArray[np.float32], NDArray[np.int64]]:
        self._share_buffers()
        self.detector.eval()
        tally = Tally()
        logits, labels = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        seen = 0
        while seen < self.sampler.num_validation_rows:
            rows = self.sampler.validation_rows(seen, seen + self.sampler.batch_size)
            batch = self._next(batches, tally, epoch, False, rows)
            seen += len(rows)
            if not len(batch.labels):
                continue
            with torch.inference_mode(), self.autocast:
                outputs = self.detector(self._to_device(batch)[0])
            logits.append(networks.fake_logit(outputs).float().cpu().numpy())
            labels.append(batch.labels)
            tally.num_images += len(batch.labels)
        return tally, np.concatenate(logits), np.concatenate(labels)

    def _next(
        self, batches: Iterator[Batch], tally: Tally, epoch: int, is_train: bool, rows: NDArray[np.int64]
    ) -> Batch:
        """The next batch, which must be of these rows: the loop and `training_batches` each keep their own count."""
        asked = time.monotonic()
        batch = next(batches)
        batch.check(epoch, is_train, rows)
        tally.wait_s += time.monotonic() - asked
        tally.num_errors += batch.num_errors
        for code, number in batch.errors_by_code.items():
            tally.errors_by_code[code] = tally.errors_by_code.get(code, 0) + number
        tally.first_error = tally.first_error or batch.first_error
        return batch

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        # Indexing made these arrays copies, so that torch may own them.
        images, labels = torch.from_numpy(batch.images), torch.from_numpy(batch.labels)
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _share_buffers(self) -> None:
        """Rank 0's batch-norm statistics are the ones that are saved, so all ranks validate with them."""
        if self.world_size > 1:
            for buffer in self.detector.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _gather(self, part: Part) -> list[Part]:
        """What each rank has, on all ranks."""
        if self.world_size == 1:
            return [part]
        parts: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(parts, part)
        return parts

    def _end_epoch(self, row: HistoryRow, shards: list[Shard]) -> None:
        """Report an epoch; every rank must do so equally often."""
        # Of equally good epochs the first is the best, as `best_epoch` has it; Ray alone would keep any.
        reported = {**row, SCORE: row["val_auc"] - 1e-9 * row["epoch"]}
        if self.rank != 0:
            ray.train.report(reported)
            return

        def write(folder: Path) -> None:
            torch.save(self._state(Tally()), folder / STATE_FILE)
            np.savez(
                folder / VALIDATION_FILE,
                logits=np.concatenate([shard.logits for shard in shards]),
                labels=np.concatenate([shard.labels for shard in shards]),
            )

        self.checkpoints.save(reported, write)
        self.spec.board.end_epoch.remote(self.history)

    def _save_step(self, position: Position, elapsed_s: float) -> None:
        """Report a checkpoint in the middle of an epoch; every rank must do so equally often."""
        self.position, self.elapsed_s = position, elapsed_s
        tally = sum(self._gather(self.tally), Tally())
        where = {"epoch": position.epoch + 1, "step": position.step}
        if self.rank != 0:
            ray.train.report(where)
            return
        self.checkpoints.save(where, lambda folder: torch.save(self._state(tally), folder / STATE_FILE))

    def _state(self, tally: Tally) -> dict[str, Any]:
        """All that a run needs to go on: the same on all ranks, whose number may change."""
        return {
            "network": self.detector.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "position": asdict(self.position),
            "tally": asdict(tally),
            "elapsed_s": self.elapsed_s,
        }

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
        self.position, self.elapsed_s = Position(**state["position"]), state["elapsed_s"]
        if self.rank == 0:  # the ranks' tallies are added up when the epoch ends
            self.tally = Tally(**state["tally"])
            self.spec.board.end_epoch.remote(self.history)  # a new driver knows none of it

    def _say(self, epoch: int, step: int) -> None:
        now = time.monotonic()
        if self.rank == 0 and (step + 1 == self.sampler.steps_per_epoch or now - self._said > 0.5):
            self._said = now
            done = min((step + 1) * self.spec.global_batch_size, self.spec.num_train)
            self.spec.board.update.remote(
                {
                    "epoch": epoch,
                    "done": epoch * self.spec.num_train + done,
                    "num_errors": self.tally.num_errors * self.world_size,
                    "errors_by_code": {
                        code: number * self.world_size for code, number in self.tally.errors_by_code.items()
                    },
                }
            )


def train_loop(spec: dict[str, LoopSpec]) -> None:
    """What each Ray Train worker runs."""
    keep_freed_memory()
    _Loop(spec["spec"]).run()


def _seed_of(*parts: int) -> int:
    """A seed for a step of a rank, of 64 bits."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
