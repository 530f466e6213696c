"""`train(config)`: labelled images in, a bundle out. The driver; `training.worker` runs on the workers."""

import logging
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import deepfake_ray
from deepfake_ray import schema
from deepfake_ray.cluster import precision
from deepfake_ray.cluster.autoscaling import plan_with_autoscaler
from deepfake_ray.cluster.placement import TrainingPlacement, plan_training
from deepfake_ray.cluster.ray_internals import noted_checkpoints, trainer_class
from deepfake_ray.cluster.session import check_places
from deepfake_ray.config import TrainConfig
from deepfake_ray.console import duration, say, show
from deepfake_ray.data import leakage, manifest
from deepfake_ray.data.labels import Labelled, load_labelled, select_split
from deepfake_ray.drivers.file_facts import image_facts
from deepfake_ray.drivers.resuming import CONFIG, asked_settings, is_done, require_same_settings
from deepfake_ray.drivers.training_data import (
    AUDIT,
    look_at_data,
    look_at_files,
    median_short_side,
    restore_images,
    seen_in_training,
)
from deepfake_ray.drivers.tuning import save_tuned
from deepfake_ray.errors import JobError, UserError
from deepfake_ray.images.decode import Limits
from deepfake_ray.images.preprocessing import CROP, DECODE_MARGIN, STRETCH, Preparation
from deepfake_ray.models import bundle, initial_weights, networks
from deepfake_ray.models.spec import Spec
from deepfake_ray.storage import files, outputs
from deepfake_ray.storage.output_lock import OutputLock, hold_output
from deepfake_ray.training.batches import TrainingTables
from deepfake_ray.training.checkpoints import SCORE, STATE_FILE
from deepfake_ray.training.mlflow_run import MlflowRun
from deepfake_ray.training.optimization import balanced_weights
from deepfake_ray.training.progress_actor import Board
from deepfake_ray.training.reporter import Watcher
from deepfake_ray.training.worker import LoopSpec, train_loop

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
REENCODED_QUALITY = 90


def train(config: TrainConfig) -> Spec:
    """Train a model as configured and write OUTPUT; returns what `OUTPUT/model` is.

    Raises:
        UserError: see the messages.
        JobError: training failed.
    """
    output = files.absolute(config.output)
    if is_done(config, output, "a model"):
        return bundle.load_spec(files.join(output, "model"))
    with hold_output(output) as lock:
        return _train(config, output, lock)


def _train(config: TrainConfig, output: str, lock: OutputLock) -> Spec:
    started = time.monotonic()
    settings_uri = files.join(output, CONFIG)
    resuming = config.resume and files.exists(settings_uri)
    if not config.resume:
        outputs.require_new_output(output, resumable=True)
    # All that can be wrong without Ray, before it is started: by the first that asks for the cluster's nodes.
    state = initial_weights.initial_state(
        config.arch, config.weights or initial_weights.default_weights(config.arch), config.seed
    )
    if config.image_size is not None:
        networks.check_image_size(config.arch, config.image_size)
    images = load_labelled(config)
    findings = look_at_data(images)
    placement = plan_with_autoscaler(lambda nodes: plan_training(nodes, config.worker_range(), config.use_gpu))
    _require_two_images_a_worker(config.global_batch_size, placement)
    check_places([config.data], output, shared_storage=config.shared_storage)
    if resuming:
        before = files.read_json(settings_uri)
        images, findings = restore_images(images, files.read_json(files.join(output, AUDIT)))
        settings = _resolve(config, images, placement, config.image_size or before["image_size"])
        require_same_settings(config, before, settings)
    else:
        limits = Limits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
        say(f"reading {len(images.table):,} images for the audit ...")
        facts = image_facts(images.table["uri"], limits)
        images, facts, findings = look_at_files(images, facts, config)
        size = config.image_size or networks.choose_image_size(config.arch, median_short_side(images.table, facts))
        settings = _resolve(config, images, placement, size)
        for warning in findings["warnings"]:
            say(f"warning: {warning}")
        files.delete_directory(files.join(output, "manifest"))  # of a run that was killed in writing it
        manifest.write(images, files.join(output, "manifest"))
        files.write_json(files.join(output, AUDIT), findings)
        leakage.save(files.join(output, "model"), seen_in_training(images.table, facts))
        # Written last: an output that has it has all that a resumed run needs.
        files.write_json(settings_uri, settings | asked_settings(config))
    say(
        f"training {config.arch} from {settings['weights']} at {settings['image_size']} px, global batch "
        f"{settings['global_batch_size']}, learning rate {settings['learning_rate']:g}, {settings['num_workers']} "
        f"worker(s) on {'GPU' if placement.use_gpu else 'CPU'}"
    )
    counts = findings["num_images"]
    of_train = [counts[schema.TRAIN][name] for name in schema.CLASSES]
    balanced = config.class_weights == "balanced"
    class_weights = balanced_weights(of_train) if balanced else (1.0, 1.0)
    # What the loss makes p_fake be for: as many reals as fakes, or as many as there are.
    prior = {name: 0.5 if balanced else of_train[i] / sum(of_train) for i, name in enumerate(schema.CLASSES)}
    if class_weights != (1.0, 1.0):
        say(f"weights in the loss: real {class_weights[schema.REAL]:.3f}, fake {class_weights[schema.FAKE]:.3f}")
    resize = STRETCH if config.recipe == "baseline" else CROP
    preparation = Preparation(
        image_size=settings["image_size"],
        resize=resize,
        reencode=REENCODED_QUALITY if config.reencode else None,
        decode_margin=DECODE_MARGIN if resize == STRETCH else None,
    )
    spec = LoopSpec(
        config=config,
        preparation=preparation,
        learning_rate=settings["learning_rate"],
        global_batch_size=settings["global_batch_size"],
        num_train=sum(counts[schema.TRAIN].values()),
        num_validation=sum(counts[schema.VALIDATION].values()),
        class_weights=class_weights,
        precision=settings["precision"],
        checkpoints_uri=files.join(output, CHECKPOINTS),
        placement=placement,
        tables=TrainingTables.of(images.table, findings["given_up"]).shared(),
        initial_state=ray.put(state),
        board=Board.options(  # type: ignore[attr-defined]
            # With the driver: a node that is lost must not take it along.
            scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        ).remote(),
    )
    tracker = MlflowRun(config.mlflow_uri, output, settings, resuming=resuming) if config.mlflow_uri else None
    with Watcher(spec, output, tracker):
        best = _fit(spec, output)
    saved = _write_bundle(best, output, preparation, config, settings, counts, images, prior, lock)
    lock.mark_finished()
    figures = saved.provenance["validation"]
    show(
        f"done in {duration(time.monotonic() - started)}: best epoch {saved.provenance['best_epoch']}, validation AUC "
        f"{figures['roc_auc']:.4f}, accuracy {figures['accuracy']:.4f}\n"
        f"  model    {files.join(output, 'model')}\n  history  {files.join(output, 'history.csv')}\n"
        f"  curves   {files.join(output, 'training.png')}"
    )
    return saved


def _require_two_images_a_worker(batch_size: int | None, placement: TrainingPlacement) -> None:
    if batch_size is not None and batch_size < 2 * placement.num_workers:
        raise UserError(
            f"global-batch-size must give each worker two images, for batch norm: got {batch_size} over "
            f"{placement.num_workers}; try {2 * placement.num_workers}."
        )


def _resolve(
    config: TrainConfig, images: manifest.Manifest, placement: TrainingPlacement, image_size: int
) -> dict[str, Any]:
    """config.json: the configuration with every default chosen, and what else decides the result."""
    origin = config.weights or initial_weights.default_weights(config.arch)
    networks.check_image_size(config.arch, image_size)
    batch_size = config.global_batch_size or default_global_batch_size(image_size, placement.num_workers)
    asked = config.to_json()
    del asked["mlflow_uri"]  # it may hold a password, and is no part of the result
    del asked["leave_one_source_out"]  # which is a run of its own for each
    return {
        **asked,
        "weights": origin,
        "image_size": image_size,
        "global_batch_size": batch_size,
        "learning_rate": config.learning_rate or (2e-3 if origin == initial_weights.NONE else 3e-4),
        # The range as it was asked: its numbers may come and go.
        "num_workers": config.num_workers or placement.num_workers,
        "use_gpu": placement.use_gpu,
        "precision": precision.resolve(config.precision, use_gpu=placement.use_gpu),
        "manifest_sha256": images.sha256,
        "versions": _versions(),
        "git_revision": git_revision(),
    }


def default_global_batch_size(image_size: int, num_workers: int) -> int:
    """128 images a step up to 64 px, else 32; two a worker at least."""
    return max(128 if image_size <= 64 else 32, 2 * num_workers)


def _fit(spec: LoopSpec, output: str) -> ray.train.Checkpoint:
    placement = spec.placement
    trainer = trainer_class()(
        train_loop,
        train_loop_config={"spec": spec},
        scaling_config=ScalingConfig(
            num_workers=placement.num_workers
            if placement.min_workers == placement.num_workers
            else (placement.min_workers, placement.num_workers),
            use_gpu=placement.use_gpu,
            resources_per_worker={"CPU": placement.cpus_per_worker, "GPU": 1 if placement.use_gpu else 0},
        ),
        run_config=RunConfig(
            storage_path=output,
            name=CHECKPOINTS,
            failure_config=FailureConfig(max_failures=spec.config.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=SCORE, checkpoint_score_order="max"
            ),
        ),
    )
    try:
        result = trainer.fit()
    except KeyboardInterrupt:
        trainer.abort()
        raise
    except ray.train.TrainingFailedError as error:
        hint = "; lower --micro-batch-size" if "OutOfMemoryError" in str(error) else ""
        raise JobError(f"training failed: {error}{hint}") from error
    _, _, failure = ray.get(spec.board.read.remote())
    if failure:
        raise JobError(f"training stopped: {failure}")
    checkpoint = result.get_best_checkpoint(SCORE, "max")
    if checkpoint is None:
        raise JobError("training ended without a checkpoint")
    # A killed driver may have left some that Ray does not know of. What its snapshot names must stay, the last one
    # beside the best, or a run that is killed before its bundle is written could not be resumed.
    places = files.join(output, CHECKPOINTS)
    kept = noted_checkpoints(places)
    for name in files.list_names(places) if kept is not None else ():
        if name.startswith("checkpoint_") and not name.endswith(".json") and name not in (kept or ""):
            files.delete_directory(files.join(places, name))
    return checkpoint


def _write_bundle(
    checkpoint: ray.train.Checkpoint,
    output: str,
    preparation: Preparation,
    config: TrainConfig,
    settings: dict[str, Any],
    counts: dict[str, Any],
    images: Labelled,
    prior: dict[str, float],
    lock: OutputLock,
) -> Spec:
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder, STATE_FILE), map_location="cpu", weights_only=True)
    untuned = Spec(
        arch=config.arch,
        preparation=preparation,
        temperature=1.0,
        thresholds={},
        precision=settings["precision"],
        provenance={
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": settings,
            "data": {
                "place": files.absolute(config.data),
                "manifest_sha256": settings["manifest_sha256"],
                "num_images": counts,
            },
            "best_epoch": len(state["history"]),
        },
    )
    return save_tuned(
        untuned,
        {key: value.numpy() for key, value in state["network"].items()},
        files.join(output, "model"),
        select_split(images, schema.VALIDATION, config.data),
        config,
        lock,
        draft=files.join(output, CHECKPOINTS, "draft"),
        use_gpu=settings["use_gpu"],
        prior=prior,
    )


def _versions() -> dict[str, str]:
    import sys

    import torchvision

    return {
        "deepfake_ray": deepfake_ray.__version__,
        "python": sys.version.split()[0],
        "ray": ray.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }


def git_revision() -> str | None:
    """The commit that this code is of, with a + where it was changed; None outside a checkout of its own."""
    folder = Path(deepfake_ray.__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # installed into somebody else's checkout, it is not
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
