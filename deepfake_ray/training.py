"""`train(config)`: labelled images in, a bundle out. The driver; `trainer.py` runs on the workers."""

import csv
import io
import logging
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from tensorboardX import SummaryWriter

from deepfake_ray import __version__, audit, bundle, manifest, metrics, models, report, schema, storage, weights
from deepfake_ray.config import FREE_TO_CHANGE, TrainConfig, require_same_run
from deepfake_ray.errors import ImageError, JobError, UserError
from deepfake_ray.fetch import fetch
from deepfake_ray.images import CROP, STRETCH, Limits, Preparation, decode
from deepfake_ray.labels import read_labelled
from deepfake_ray.pipeline import TrainingTables, image_facts
from deepfake_ray.placement import TrainingPlacement, plan_training
from deepfake_ray.progress import Progress, duration, say
from deepfake_ray.session import check_places, cluster_nodes
from deepfake_ray.trainer import (
    CHECKPOINT_SCORE,
    STATE_FILE,
    VALIDATION_FILE,
    Board,
    HistoryRow,
    LoopSpec,
    train_loop,
)

log = logging.getLogger(__name__)

REENCODED_QUALITY = 90
SIZE_SAMPLE = 64
"""Training images that are opened to choose the image size."""


def train(config: TrainConfig) -> bundle.Spec:
    """Train a model as configured and write OUTPUT; returns what `OUTPUT/model` is.

    Raises:
        UserError: see the messages.
        JobError: training failed.
    """
    started = time.monotonic()
    output = storage.absolute(config.output)
    if config.resume and storage.is_finished(output):
        say(f"{output} is finished already; nothing to do")
        return bundle.load_spec(storage.join(output, "model"))
    settings_uri = storage.join(output, "config.json")
    resuming = config.resume and storage.exists(settings_uri)
    if not resuming:
        storage.require_new_output(output, resumable=True)
    images = read_labelled(
        config.data,
        labels=config.labels,
        group_regex=config.group_regex,
        split_by=config.split_by,
        limit=config.limit,
        seed=config.seed,
    )
    check_places([config.data], output, shared_storage=config.shared_storage)
    findings = _look_at_data(images)
    placement = plan_training(cluster_nodes(), config.num_workers, config.use_gpu)
    settings = _resolve(config, images, placement)
    state = weights.initial_state(config.arch, settings["weights"], config.seed)
    if resuming:
        # The order of rows and the batch-norm statistics depend on the number of workers.
        require_same_run(storage.read_json(settings_uri), settings, FREE_TO_CHANGE - {"num_workers"})
    else:
        cpus = sum(node.num_cpus for node in cluster_nodes())
        of_files = _look_at_files(images, config, cpus)
        findings |= {**of_files, "warnings": findings["warnings"] + of_files["warnings"]}
        for warning in findings["warnings"]:
            say(f"warning: {warning}")
        manifest.write(images, storage.join(output, "manifest"))
        storage.write_json(storage.join(output, "audit.json"), findings)
        # Written last: an output that has it has all that a resumed run needs.
        storage.write_json(settings_uri, settings)
    say(
        f"training {config.arch} from {settings['weights']} at {settings['image_size']} px, global batch "
        f"{settings['global_batch_size']}, learning rate {settings['learning_rate']:g}, {placement.num_workers} "
        f"worker(s) on {'GPU' if placement.use_gpu else 'CPU'}"
    )
    counts = findings["num_images"]
    resize = STRETCH if config.recipe == "baseline" else CROP
    preparation = Preparation(
        image_size=settings["image_size"], resize=resize, reencode=REENCODED_QUALITY if config.reencode else None
    )
    spec = LoopSpec(
        config=config,
        preparation=preparation,
        learning_rate=settings["learning_rate"],
        global_batch_size=settings["global_batch_size"],
        num_train=sum(counts[schema.TRAIN].values()),
        num_validation=sum(counts[schema.VALIDATION].values()),
        placement=placement,
        tables=TrainingTables.of(images.table),
        initial_state=ray.put(state),
        board=Board.remote(),  # type: ignore[attr-defined]
    )
    best = _fit(spec, output)
    saved = _write_bundle(best, storage.join(output, "model"), preparation, config, settings, counts)
    storage.mark_finished(output)
    figures = saved.provenance["validation"]
    say(
        f"done in {duration(time.monotonic() - started)}: best epoch {saved.provenance['best_epoch']}, validation AUC "
        f"{figures['roc_auc']:.4f}, accuracy {figures['accuracy']:.4f}\n"
        f"  model    {storage.join(output, 'model')}\n  history  {storage.join(output, 'history.csv')}\n"
        f"  curves   {storage.join(output, 'training.png')}"
    )
    return saved


def _resolve(config: TrainConfig, images: manifest.Manifest, placement: TrainingPlacement) -> dict[str, Any]:
    """config.json: the configuration with every default chosen, and what else decides the result."""
    origin = config.weights or weights.default_weights(config.arch)
    image_size = config.image_size or models.choose_image_size(config.arch, _median_short_side(images, config))
    models.check_image_size(config.arch, image_size)
    batch_size = config.global_batch_size or default_global_batch_size(image_size, placement.num_workers)
    if batch_size % placement.num_workers:
        raise UserError(
            f"global-batch-size must be a multiple of num-workers: got {batch_size} over {placement.num_workers}; "
            f"try {batch_size // placement.num_workers * placement.num_workers or placement.num_workers}."
        )
    return {
        **config.to_json(),
        "weights": origin,
        "image_size": image_size,
        "global_batch_size": batch_size,
        "learning_rate": config.learning_rate or (2e-3 if origin == weights.NONE else 3e-4),
        "num_workers": placement.num_workers,
        "use_gpu": placement.use_gpu,
        "manifest_sha256": images.sha256,
        "versions": _versions(),
    }


def default_global_batch_size(image_size: int, num_workers: int) -> int:
    """128 images a step up to 64 px, else 32; up to the next multiple of the workers."""
    wanted = 128 if image_size <= 64 else 32
    return -(-wanted // num_workers) * num_workers


def _look_at_data(images: manifest.Manifest) -> dict[str, Any]:
    findings = audit.of_manifest(images.table)
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
    return findings


def _look_at_files(images: manifest.Manifest, config: TrainConfig, cpus: float) -> dict[str, Any]:
    """The part of the audit that reads every image."""
    limits = Limits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
    facts = image_facts(images.table["uri"], limits, cpus)
    found = audit.duplicates(images.table, facts)
    auc = audit.zero_pixel_auc(images.table, facts, config.seed)
    leaks = (
        f"{found['num_across_splits']:,} images are in two splits and {found['num_across_classes']:,} in two classes"
    )
    warnings = []
    if found["examples"]:
        if not config.allow_leaks:
            raise UserError(
                f"An image must not be in two splits or two classes: {leaks}, with the same bytes, such as "
                f"{' and '.join(found['examples'][0][:2])}; remove them, or add --allow-leaks."
            )
        warnings.append(f"{leaks}: figures on them flatter the model")
    if auc is not None and auc > audit.SHORTCUT_AUC and not config.reencode:
        warnings.append(
            f"the files alone (bytes, size, format, JPEG quality), without a pixel, tell the classes apart with an AUC "
            f"of {auc:.3f}: the model may learn that instead of the pictures; --reencode sends both through one JPEG"
        )
    return {"duplicates": found, "zero_pixel_auc": auc, "warnings": warnings}


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
                num_to_keep=1, checkpoint_score_attribute=CHECKPOINT_SCORE, checkpoint_score_order="max"
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
    checkpoint = result.get_best_checkpoint(CHECKPOINT_SCORE, "max")
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
            for name, value in row.items():
                if name != "epoch":
                    events.add_scalar(_tag(name), value, row["epoch"])
        events.flush()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        storage.write_bytes(storage.join(self._output, "history.csv"), text.getvalue().encode())
        storage.write_bytes(storage.join(self._output, "training.png"), report.training_curves(history))
        storage.upload_directory(folder, storage.join(self._output, "tensorboard"))
        self._num_written = len(history)


def _tag(name: str) -> str:
    """TensorBoard's name of a column of history.csv: `val_auc` -> `val/auc`."""
    for group in ("train", "val"):
        if name.startswith(f"{group}_"):
            return f"{group}/{name.removeprefix(f'{group}_')}"
    return f"train/{name}"


def _write_bundle(
    checkpoint: ray.train.Checkpoint,
    uri: str,
    preparation: Preparation,
    config: TrainConfig,
    settings: dict[str, Any],
    counts: dict[str, Any],
) -> bundle.Spec:
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder, STATE_FILE), map_location="cpu", weights_only=True)
        with np.load(Path(folder, VALIDATION_FILE)) as validation:
            logits, labels = validation["logits"], validation["labels"]
    temperature = metrics.fit_temperature(labels, logits)
    p_fake = bundle.p_fake_of(logits, temperature)
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
            "config": settings,
            "data": {
                "place": storage.absolute(config.data),
                "manifest_sha256": settings["manifest_sha256"],
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
