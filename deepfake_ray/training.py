"""`train(config)`: labelled images in, a bundle out. Holds the loop that runs on each Ray Train worker."""

import csv
import io
import logging
import math
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import ray
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.nn import functional as F

from deepfake_ray import __version__, bundle, manifest, metrics, models, report, schema, storage, weights
from deepfake_ray.audit import audit
from deepfake_ray.config import TrainConfig
from deepfake_ray.errors import ImageError, JobError, UserError
from deepfake_ray.fetch import fetch
from deepfake_ray.images import Limits, Preparation, decode
from deepfake_ray.pipeline import Batch, TrainingTables, training_batches
from deepfake_ray.placement import TrainingPlacement, plan_training
from deepfake_ray.progress import Progress, duration, say
from deepfake_ray.sampling import Sampler
from deepfake_ray.session import check_places, cluster_nodes

log = logging.getLogger(__name__)

HistoryRow = dict[str, Any]
STATE_FILE = "state.pt"
VALIDATION_FILE = "validation.npz"
SIZE_SAMPLE = 64
"""Training images that are opened to choose the image size."""


# --- on the workers


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
        self.optimizer = torch.optim.Adam(
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
        if self.rank != 0:
            ray.train.report(row)
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
            ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder))
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


# --- on the driver


def train(config: TrainConfig) -> bundle.Spec:
    """Train a model as configured and write OUTPUT; returns what `OUTPUT/model` is.

    Raises:
        UserError: see the messages.
        JobError: training failed.
    """
    started = time.monotonic()
    output = storage.absolute(config.output)
    storage.require_new_output(output, resumable=False)
    images = manifest.read_labelled(
        config.data,
        labels=config.labels,
        group_regex=config.group_regex,
        split_by=config.split_by,
        limit=config.limit,
        seed=config.seed,
    )
    check_places([config.data], output, shared_storage=config.shared_storage)
    findings = _look_at_data(images)
    arch, origin = config.arch, config.weights or weights.default_weights(config.arch)
    image_size = config.image_size or models.choose_image_size(arch, _median_short_side(images, config))
    models.check_image_size(arch, image_size)
    nodes = cluster_nodes()
    placement = plan_training(nodes, config.num_workers, config.use_gpu)
    batch_size = config.global_batch_size or default_global_batch_size(image_size, placement.num_workers)
    if batch_size % placement.num_workers:
        raise UserError(
            f"global-batch-size must be a multiple of num-workers: got {batch_size} over {placement.num_workers}; "
            f"try {batch_size // placement.num_workers * placement.num_workers or placement.num_workers}."
        )
    learning_rate = config.learning_rate or (2e-3 if origin == weights.NONE else 3e-4)
    state = weights.initial_state(arch, origin, config.seed)
    counts = findings["num_images"]
    say(
        f"training {arch} from {origin} at {image_size} px, global batch {batch_size}, learning rate "
        f"{learning_rate:g}, {placement.num_workers} worker(s) on {'GPU' if placement.use_gpu else 'CPU'}"
    )
    manifest.write(images, storage.join(output, "manifest"))
    storage.write_json(storage.join(output, "audit.json"), findings)
    resolved = {
        **config.to_json(),
        "weights": origin,
        "image_size": image_size,
        "global_batch_size": batch_size,
        "learning_rate": learning_rate,
        "num_workers": placement.num_workers,
        "use_gpu": placement.use_gpu,
        "manifest_sha256": images.sha256,
        "versions": _versions(),
    }
    storage.write_json(storage.join(output, "config.json"), resolved)
    preparation = Preparation(image_size=image_size)
    spec = LoopSpec(
        config=config,
        preparation=preparation,
        learning_rate=learning_rate,
        global_batch_size=batch_size,
        num_train=sum(counts[schema.TRAIN].values()),
        num_validation=sum(counts[schema.VALIDATION].values()),
        placement=placement,
        tables=TrainingTables.of(images.table),
        initial_state=ray.put(state),
        board=Board.remote(),  # type: ignore[attr-defined]
    )
    best = _fit(spec, output)
    saved = _write_bundle(best, storage.join(output, "model"), preparation, config, resolved, counts)
    storage.mark_finished(output)
    figures = saved.provenance["validation"]
    say(
        f"done in {duration(time.monotonic() - started)}: best epoch {saved.provenance['best_epoch']}, validation AUC "
        f"{figures['roc_auc']:.4f}, accuracy {figures['accuracy']:.4f}\n"
        f"  model    {storage.join(output, 'model')}\n  history  {storage.join(output, 'history.csv')}\n"
        f"  curves   {storage.join(output, 'training.png')}"
    )
    return saved


def default_global_batch_size(image_size: int, num_workers: int) -> int:
    """128 images a step up to 64 px, else 32; up to the next multiple of the workers."""
    wanted = 128 if image_size <= 64 else 32
    return -(-wanted // num_workers) * num_workers


def _look_at_data(images: manifest.Manifest) -> dict[str, Any]:
    findings = audit(images.table)
    counts = findings["num_images"]
    for needed in (schema.TRAIN, schema.VALIDATION):
        if needed not in counts:
            raise UserError(
                f"Training needs a {needed} split: the data has {', '.join(counts)}; rename a folder, or give images "
                "without split folders and let --split-by auto make them."
            )
    parts = [f"{name} {by['real']:,} real + {by['fake']:,} fake" for name, by in counts.items()]
    say(f"images: {'; '.join(parts)}")
    if images.other_files:
        say(f"{len(images.other_files):,} other files are no images and are left out, such as {images.other_files[0]}")
    for warning in findings["warnings"]:
        say(f"warning: {warning}")
    return findings


def _median_short_side(images: manifest.Manifest, config: TrainConfig) -> int:
    """Of some training images spread over the manifest; unreadable ones are passed over, training counts them."""
    rows = images.table.filter(pc.equal(images.table["split"], schema.TRAIN))
    uris = rows["uri"].take(np.linspace(0, len(rows) - 1, min(SIZE_SAMPLE, len(rows))).astype(np.int64)).to_pylist()
    limits = Limits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
    sides, problem = [], ""
    for uri in uris:
        try:
            sides.append(min(decode(fetch(uri, limits.max_bytes), limits).pixels.shape[:2]))
        except ImageError as error:
            problem = f"{uri}: {error}"
    if not sides:
        raise UserError(f"The training images must be readable: none of {len(uris)} is ({problem}); check them.")
    return int(np.median(sides))


def _fit(spec: LoopSpec, output: str) -> ray.train.Checkpoint:
    placement = spec.placement
    trainer = ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={"spec": spec},
        scaling_config=ScalingConfig(
            num_workers=placement.num_workers,
            use_gpu=placement.use_gpu,
            resources_per_worker={"CPU": placement.cpus_per_worker, "GPU": 1 if placement.use_gpu else 0},
        ),
        run_config=RunConfig(
            storage_path=output,
            name="checkpoints",
            failure_config=FailureConfig(max_failures=spec.config.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="val_auc", checkpoint_score_order="max"
            ),
        ),
    )
    with _Watcher(spec, output):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise JobError(f"training failed: {error}") from error
    _, _, failure = ray.get(spec.board.read.remote())
    if failure:
        raise JobError(f"training stopped: {failure}")
    checkpoint = result.get_best_checkpoint("val_auc", "max")
    if checkpoint is None:
        raise JobError("training ended without a checkpoint")
    return checkpoint


class _Watcher:
    """Follows the board from a thread: draws progress; writes history.csv, training.png and TensorBoard events."""

    def __init__(self, spec: LoopSpec, output: str):
        self._spec, self._output = spec, output
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="training-progress", daemon=True)
        self._num_written = 0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        total = self._spec.config.epochs * self._spec.num_train
        with (
            tempfile.TemporaryDirectory() as folder,
            SummaryWriter(folder) as events,
            Progress("train", total) as progress,
        ):
            while True:
                stopping = self._stop.wait(0.5)
                try:
                    now, history, _ = ray.get(self._spec.board.read.remote())
                except ray.exceptions.RayError:
                    return
                if now:
                    note = f"epoch {int(now['epoch']) + 1}/{self._spec.config.epochs}"
                    progress.update(now["done"], now["num_errors"], note)
                if len(history) > self._num_written:
                    self._write(history, events, folder)
                if stopping:
                    return

    def _write(self, history: list[HistoryRow], events: SummaryWriter, folder: str) -> None:
        for row in history[self._num_written :]:
            say(
                f"epoch {int(row['epoch'])}: loss {row['train_loss']:.4f}, validation loss {row['val_loss']:.4f}, "
                f"accuracy {row['val_accuracy']:.4f}, AUC {row['val_auc']:.4f}; {row['images_per_s']:,.0f} images/s, "
                f"{row['data_wait_share']:.0%} waiting for data"
            )
            for name, value in row.items():
                if name != "epoch":
                    group = "val" if name.startswith("val_") else "train"
                    events.add_scalar(f"{group}/{name.split('_', 1)[-1]}" if "_" in name else name, value, row["epoch"])
        self._num_written = len(history)
        events.flush()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        storage.write_bytes(storage.join(self._output, "history.csv"), text.getvalue().encode())
        storage.write_bytes(storage.join(self._output, "training.png"), report.training_curves(history))
        storage.upload_directory(folder, storage.join(self._output, "tensorboard"))


def _write_bundle(
    checkpoint: ray.train.Checkpoint,
    uri: str,
    preparation: Preparation,
    config: TrainConfig,
    resolved: dict[str, Any],
    counts: dict[str, Any],
) -> bundle.Spec:
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder, STATE_FILE), map_location="cpu", weights_only=True)
        with np.load(Path(folder, VALIDATION_FILE)) as validation:
            logits, labels = validation["logits"], validation["labels"]
    temperature = metrics.fit_temperature(labels, logits)
    p_fake = metrics.p_fake_of(logits, temperature)
    at_half = metrics.at_threshold(labels, p_fake, 0.5)
    figures = {
        **metrics.threshold_free(labels, logits, temperature),
        "accuracy": at_half["accuracy"],
        "balanced_accuracy": at_half["balanced_accuracy"],
    }
    spec = bundle.Spec(
        arch=config.arch,
        preparation=preparation,
        temperature=temperature,
        thresholds=metrics.choose_thresholds(labels, p_fake),
        provenance={
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": resolved,
            "data": {
                "place": storage.absolute(config.data),
                "manifest_sha256": resolved["manifest_sha256"],
                "num_images": counts,
            },
            "best_epoch": len(state["history"]),
            "validation": figures,
        },
    )
    return bundle.save(uri, spec, {key: value.numpy() for key, value in state["network"].items()})


def _versions() -> dict[str, str]:
    import sys

    import torchvision

    return {
        "deepfake_ray": __version__,
        "python": sys.version.split()[0],
        "ray": ray.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }
