"""`score(config)`: images in, predictions out. The scorer actor, the driver, and resuming.

The manifest is cut into chunks; the actor that scores chunk 7 writes `predictions/part-000007.parquet`, whole or not
at all. So a chunk that is scored twice (a lost worker, a killed driver) overwrites itself, and what is left to do is
what has no part.
"""

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepfake_ray import bundle, manifest, metrics, schema, storage
from deepfake_ray.config import EvaluateConfig, ScoreConfig, require_same_run
from deepfake_ray.errors import JobError
from deepfake_ray.images import Limits
from deepfake_ray.loading import Loaded, load_all
from deepfake_ray.pipeline import scored_chunks
from deepfake_ray.placement import ScoringPlacement, plan_scoring
from deepfake_ray.progress import Progress, duration, say
from deepfake_ray.session import check_places, cluster_nodes

RUN = "run.json"
MIN_IMAGES_TO_STOP = 1_000
"""Fewer images than this say too little about the share of errors to stop a run."""
MAX_ROWS_PER_CHUNK = 8192
CHUNKS_PER_ACTOR = 16
"""Wanted: few enough to make files worth reading, many enough to keep all actors busy to the end."""


@dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """What a scorer actor needs."""

    model: str
    predictions: str
    threshold: float
    batch_size: int
    precision: str
    limits: Limits
    placement: ScoringPlacement
    run_id: str


class ChunkScorer:
    """An actor: loads the model once, then scores chunks. torch is imported here, not in the driver."""

    def __init__(self, spec: ScorerSpec):
        from deepfake_ray.inference import Predictor

        self._spec = spec
        self._predictor = Predictor(
            spec.model,
            device="cuda" if spec.placement.use_gpu else "cpu",
            precision=spec.precision,
            num_threads=1 if spec.placement.use_gpu else spec.placement.threads_per_actor,
        )

    def __call__(self, work: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        """Score one chunk, write its part, and say how it went."""
        started_at = time.time()
        chunk = manifest.Chunk(
            int(work["index"][0]), str(work["uri"][0]), int(work["row_group"][0]), int(work["num_rows"][0])
        )
        rows = manifest.read_chunk(chunk)
        images, logits = self._score(rows["uri"].to_pylist())
        table = _predictions(rows, images, logits, self._predictor.spec, self._spec)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        storage.write_bytes(_part(self._spec.predictions, chunk.index), sink.getvalue())
        codes = Counter(str(image.error.code) for image in images if image.error is not None)
        example = next((f"{image.uri}: {image.error}" for image in images if image.error is not None), "")
        return {
            "index": [chunk.index],
            "num_images": [len(images)],
            "errors_by_code": [json.dumps(codes)],
            "example": [example],
            "started_at": [started_at],
            "written_at": [time.time()],
        }

    def _score(self, uris: list[str]) -> tuple[list[Loaded], NDArray[np.float32]]:
        """Everything known of each image, without pixels; and its logit, NaN where it could not be read."""
        preparation, batch_size = self._predictor.spec.preparation, self._spec.batch_size
        size = preparation.image_size
        batch = np.empty((batch_size, size, size, 3), np.uint8)
        positions: list[int] = []
        images: list[Loaded] = []
        logits = np.full(len(uris), np.nan, np.float32)
        num_threads = self._spec.placement.threads_per_actor if self._spec.placement.use_gpu else 1
        for position, image in enumerate(load_all(uris, self._spec.limits, preparation, num_threads=num_threads)):
            if image.pixels is not None:
                batch[len(positions)] = image.pixels
                positions.append(position)
                if len(positions) == batch_size:
                    logits[positions] = self._predictor.logits(batch)
                    positions = []
            images.append(Loaded(**{**vars(image), "pixels": None}))
        if positions:
            logits[positions] = self._predictor.logits(batch[: len(positions)])
        return images, logits


def _part(predictions: str, index: int) -> str:
    return storage.join(predictions, f"part-{index:06d}.parquet")


def _predictions(
    rows: pa.Table, images: list[Loaded], logits: NDArray[np.float32], model: bundle.Spec, spec: ScorerSpec
) -> pa.Table:
    """One row for each row of the manifest, in the same order."""
    failed = np.array([image.error is not None for image in images])
    p_fake = metrics.p_fake_of(logits, model.temperature).astype(np.float32)
    called = np.where(p_fake >= spec.threshold, schema.CLASSES[schema.FAKE], schema.CLASSES[schema.REAL])

    def known(values: NDArray[Any]) -> pa.Array:
        return pa.array(values, mask=failed)

    columns: dict[str, Any] = {
        "row": rows["row"],
        "uri": rows["uri"],
        "status": np.where(failed, schema.ERROR, schema.OK),
        "error_code": [None if image.error is None else str(image.error.code) for image in images],
        "error_message": [None if image.error is None else image.error.message for image in images],
        "logit": known(logits),
        "p_fake": known(p_fake),
        "predicted_label": known(called.astype(object)),
        "threshold": np.full(len(images), spec.threshold),
        "model_id": [model.model_id] * len(images),
        "run_id": [spec.run_id] * len(images),
        "scored_at": [datetime.now(UTC)] * len(images),
        "true_label": rows["label"],
        "split": rows["split"],
        "source": rows["source"],
        "group": rows["group"],
    }
    for name in ("sha256", "num_bytes", "format", "width", "height", "jpeg_quality"):
        columns[name] = [getattr(image, name) for image in images]
    return pa.table([columns[field.name] for field in schema.PREDICTIONS], schema=schema.PREDICTIONS)


# --- on the driver


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score the images as configured and write OUTPUT; returns `run.json`.

    Raises:
        UserError: see the messages.
        JobError: no image could be scored, or too many could not.
    """
    output = storage.absolute(config.output)
    if config.resume and storage.is_finished(output):
        say(f"{output} is finished already; nothing to do")
        summary: dict[str, Any] = storage.read_json(storage.join(output, RUN))
        return summary
    summary = score_manifest(config, lambda: manifest.list_images(config.images, limit=config.limit))
    storage.mark_finished(output)
    say(f"  predictions  {storage.join(output, 'predictions')}\n  summary      {storage.join(output, RUN)}")
    return summary


def score_manifest(
    config: ScoreConfig | EvaluateConfig, list_images: Callable[[], manifest.Manifest]
) -> dict[str, Any]:
    """Score what `list_images()` gives into OUTPUT/predictions, resuming if asked to; write and return `run.json`.

    Args:
        config: of the job.
        list_images: called once, for a new output only, so that a resumed run scores the images it began with.
    """
    started = time.monotonic()
    output = storage.absolute(config.output)
    run_uri, manifest_uri = storage.join(output, RUN), storage.join(output, "manifest")
    predictions = storage.join(output, "predictions")
    model = bundle.load_spec(config.model)
    source = config.images if isinstance(config, ScoreConfig) else config.data
    check_places([source, config.model], output, shared_storage=config.shared_storage)
    placement = plan_scoring(cluster_nodes(), config.num_workers, config.use_gpu)
    resuming = config.resume and storage.exists(run_uri)
    if resuming:
        run = storage.read_json(run_uri)
        now = {"model_id": model.model_id, **config.to_json()}
        require_same_run({"model_id": run["model_id"], **run["config"]}, now)
    else:
        if not config.resume:
            storage.require_new_output(output, resumable=True)
        images = list_images()
        manifest.write(images, manifest_uri, rows_per_chunk=_rows_per_chunk(len(images.table), config, placement))
        run = {
            "run_id": uuid.uuid4().hex[:16],
            "status": "running",
            "model_id": model.model_id,
            "manifest_sha256": images.sha256,
            "num_other_files": len(images.other_files),
            "config": config.to_json(),
        }
        # Written after the manifest: an output that has it has all that a resumed run needs.
        storage.write_json(run_uri, run)
    chunks = manifest.chunks(manifest_uri)
    written = set(storage.list_names(predictions))
    left = [chunk for chunk in chunks if _part("", chunk.index).lstrip("/") not in written]
    num_images = sum(chunk.num_rows for chunk in chunks)
    if resuming:
        num_left = sum(chunk.num_rows for chunk in left)
        say(f"resuming: {num_images - num_left:,} of {num_images:,} images are scored already")
    if run["num_other_files"]:
        say(f"{run['num_other_files']:,} other files are no images; see {manifest_uri}/{manifest.OTHER_FILES}")
    spec = ScorerSpec(
        model=storage.absolute(config.model),
        predictions=predictions,
        threshold=model.threshold(config.threshold),
        batch_size=config.batch_size,
        precision=config.precision,
        limits=Limits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels),
        placement=placement,
        run_id=run["run_id"],
    )
    speed = _run(left, spec, config.max_error_share) if left else None
    counts = _count(predictions, num_images)
    wall_s = time.monotonic() - started
    run |= {**counts, "images_per_s": speed, "wall_s": wall_s, "status": "finished"}
    storage.write_json(run_uri, run)
    if not counts["num_ok"]:
        raise JobError(
            f"no image could be scored: {_by_code(counts['errors_by_code'])}; see error_message in {predictions}"
        )
    rate = f" at {speed:,.0f} images/s" if speed else ""
    say(
        f"{num_images:,} images in {duration(wall_s)}{rate}: {counts['num_ok']:,} scored, "
        f"{counts['num_predicted']['fake']:,} of them called fake at p_fake >= {spec.threshold:.4f}"
        + (f"; {counts['num_errors']:,} errors ({_by_code(counts['errors_by_code'])})" if counts["num_errors"] else "")
    )
    return run


def _rows_per_chunk(num_rows: int, config: ScoreConfig | EvaluateConfig, placement: ScoringPlacement) -> int:
    """Whole batches, so that only a chunk's last forward pass may be a small one."""
    wanted = num_rows / (placement.num_actors * CHUNKS_PER_ACTOR)
    batches = max(1, round(wanted / config.batch_size))
    return min(batches, max(1, MAX_ROWS_PER_CHUNK // config.batch_size)) * config.batch_size


def _run(chunks: list[manifest.Chunk], spec: ScorerSpec, max_error_share: float) -> float:
    """Score the chunks; returns images/s from the first batch to the last write."""
    started_at, written_at = float("inf"), 0.0
    done = 0
    errors: Counter[str] = Counter()
    with Progress("score", sum(chunk.num_rows for chunk in chunks)) as progress:
        for report in scored_chunks(chunks, ChunkScorer, {"spec": spec}, spec.placement):
            started_at = min(started_at, report["started_at"])
            written_at = max(written_at, report["written_at"])
            done += int(report["num_images"])
            errors.update(json.loads(report["errors_by_code"]))
            progress.update(done, errors.total())
            if done >= MIN_IMAGES_TO_STOP and errors.total() > max_error_share * done:
                raise JobError(
                    f"stopped: {errors.total():,} of {done:,} images cannot be read ({_by_code(errors)}), over "
                    f"--max-error-share {max_error_share:g}; the last was {report['example']}. Mend the cause and "
                    "write to a new output; or, to keep these rows, raise the share and add --resume."
                )
    return done / max(written_at - started_at, 1e-9)


def _by_code(errors: dict[str, int]) -> str:
    ordered = sorted(errors.items(), key=lambda item: -item[1])
    return ", ".join(f"{code} {number:,}" for code, number in ordered)


def _count(predictions: str, num_images: int) -> dict[str, Any]:
    """Count the written rows, by batches, whatever their number.

    Raises:
        JobError: they are not exactly as many as the manifest's.
    """
    fs, path = storage.filesystem(predictions)
    data = pads.dataset(path, filesystem=fs, format="parquet")
    codes: Counter[str] = Counter()
    called: Counter[str] = Counter()
    histogram = np.zeros(20, np.int64)
    num_rows = 0
    for batch in data.to_batches(columns=["error_code", "predicted_label", "p_fake"]):
        num_rows += len(batch)
        codes.update(code for code in batch["error_code"].to_pylist() if code is not None)
        called.update(label for label in batch["predicted_label"].to_pylist() if label is not None)
        scores = batch["p_fake"].drop_null().to_numpy()
        histogram += np.histogram(scores, bins=len(histogram), range=(0, 1))[0]
    if num_rows != num_images:
        raise JobError(f"{predictions} has {num_rows} rows for {num_images} listed images; it was changed by others")
    return {
        "num_images": num_images,
        "num_ok": num_images - codes.total(),
        "num_errors": codes.total(),
        "errors_by_code": dict(codes),
        "num_predicted": {label: called[label] for label in schema.CLASSES},
        "p_fake_histogram": histogram.tolist(),
    }


def read_predictions(output: str, columns: list[str] | None = None) -> pa.Table:
    """All rows of OUTPUT/predictions, in manifest order."""
    fs, path = storage.filesystem(storage.join(output, "predictions"))
    return pads.dataset(path, filesystem=fs, format="parquet").to_table(columns=columns).sort_by("row")
