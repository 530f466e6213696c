"""Scores chunks of a manifest: fetch, decode, forward, and a Parquet file each. Knows no Ray."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepfake_ray import bundle, manifest, schema, storage
from deepfake_ray.allocator import keep_freed_memory
from deepfake_ray.errors import OF_THE_STORAGE, ErrorCode, ImageError
from deepfake_ray.images import Limits
from deepfake_ray.isolation import Items
from deepfake_ray.known import Known
from deepfake_ray.loading import Loaded, Loader

if TYPE_CHECKING:
    from deepfake_ray.inference import Predictor

T = TypeVar("T")

MIN_IMAGES_TO_STOP = 1_000
"""Fewer images than this say too little about the share of errors to stop a run."""


@dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """What a scorer needs."""

    model: str
    chunks: str
    """The directory that the chunks' files are written to."""
    threshold: float
    batch_size: int
    precision: str
    limits: Limits
    image_timeout_s: float
    max_error_share: float
    use_gpu: bool
    num_threads: int
    run_id: str
    known: str | None = None
    """Of a file of `known.build`."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How the scoring of a chunk went."""

    index: int
    num_images: int
    """That were looked at."""
    num_known: int = 0
    """Of these, scores taken from an earlier run."""
    errors_by_code: Counter[str] = field(default_factory=Counter)
    example: str = ""
    """One of the errors."""
    is_written: bool = True
    """False: the storage failed so often that the scorer gave up; nothing was written."""
    started_at: float
    ended_at: float
    """Seconds since the epoch."""


def chunk_file(folder: str, index: int) -> str:
    """Where the rows of a chunk go."""
    return storage.join(folder, f"chunk-{index:07d}.parquet")


class ChunkScorer:
    """Holds the model; scores one chunk a call."""

    def __init__(self, spec: ScorerSpec):
        from deepfake_ray.inference import Predictor  # imports torch, which the driver does without

        keep_freed_memory()
        self._spec = spec
        self._predictor = Predictor(
            spec.model,
            device="cuda" if spec.use_gpu else "cpu",
            precision=spec.precision,
            num_threads=1 if spec.use_gpu else spec.num_threads,
        )
        self._known = None if spec.known is None else Known(spec.known)
        self._loader = Loader(
            limits=spec.limits,
            preparation=self._predictor.spec.preparation,
            num_threads=spec.num_threads if spec.use_gpu else 1,
            timeout_s=spec.image_timeout_s,
            recall=None if self._known is None else self._known.by_sha256,
        )

    def __call__(self, chunk: manifest.Chunk, items: Items) -> Report:
        """Score a chunk and write its file; `items` are positions in it."""
        started_at = time.time()
        rows = manifest.read_chunk(chunk)
        uris = rows["uri"].to_pylist()
        known = {} if self._known is None else self._known.by_version(rows)
        images, logits = self._score(uris, known, items)
        errors = [(uri, image.error) for uri, image in zip(uris, images, strict=False) if image.error is not None]
        is_written = len(images) == len(uris)
        if is_written:
            table = predictions(rows, images, logits, self._predictor.spec, self._spec)
            with storage.new_file(chunk_file(self._spec.chunks, chunk.index)) as path:
                pq.write_table(table, path, compression="zstd")
        return Report(
            index=chunk.index,
            num_images=len(images),
            num_known=sum(image.logit is not None for image in images),
            errors_by_code=Counter(str(error.code) for _, error in errors),
            example=f"{errors[-1][0]}: {errors[-1][1]}" if errors else "",
            is_written=is_written,
            started_at=started_at,
            ended_at=time.time(),
        )

    def _score(
        self, uris: list[str], known: Mapping[int, Loaded], items: Items
    ) -> tuple[list[Loaded], NDArray[np.float32]]:
        """Everything known of each image, without pixels; and its logit, NaN where it could not be read.

        Ends early when the storage fails too often: wrong credentials must not yield a million error rows.
        """
        for position in items.suspects:
            list(self._loader.load_all([uris[position]], partial(_always, items.at(position))))
        given_up = {position: Loaded(error=_given_up(reason)) for position, reason in items.given_up.items()}
        settled = {**known, **given_up}
        positions = [position for position in range(len(uris)) if position not in settled]
        loaded = self._loader.load_all([uris[i] for i in positions], lambda i: items.at(positions[i]))
        batch = _Batch(self._predictor, self._spec.batch_size)
        images: list[Loaded] = []
        logits = np.full(len(uris), np.nan, np.float32)
        num_failed = 0
        for position in range(len(uris)):
            image = settled[position] if position in settled else next(loaded)
            if image.pixels is not None:
                batch.add(position, image.pixels)
                image = replace(image, pixels=None)
            elif image.logit is not None:
                logits[position] = image.logit
            images.append(image)
            num_failed += image.error is not None and image.error.code in OF_THE_STORAGE
            if len(images) >= MIN_IMAGES_TO_STOP and num_failed > self._spec.max_error_share * len(images):
                break
        for position, logit in batch.finish():
            logits[position] = logit
        return images, logits


def _always(result: T, _: int) -> T:
    return result


def _given_up(reason: str) -> ImageError:
    return ImageError(ErrorCode.TIMEOUT if reason.startswith("took") else ErrorCode.DECODER_CRASHED, reason)


class _Batch:
    """Collects pixels and has them scored, always `batch_size` at a time.

    Every forward pass has the same shape, so the same bytes get the same logit, to the bit, wherever they lie.
    """

    def __init__(self, predictor: "Predictor", batch_size: int):
        self._predictor = predictor
        size = predictor.spec.preparation.image_size
        self._pixels = np.zeros((batch_size, size, size, 3), np.uint8)
        self._positions: list[int] = []
        self._scored: list[tuple[int, float]] = []

    def add(self, position: int, pixels: NDArray[np.uint8]) -> None:
        self._pixels[len(self._positions)] = pixels
        self._positions.append(position)
        if len(self._positions) == len(self._pixels):
            self._forward()

    def finish(self) -> list[tuple[int, float]]:
        """Positions and logits, in the order of `add`."""
        if self._positions:
            self._forward()
        return self._scored

    def _forward(self) -> None:
        logits = self._predictor.logits(self._pixels)[: len(self._positions)]
        self._scored.extend(zip(self._positions, logits.tolist(), strict=True))
        self._positions = []


def predictions(
    rows: pa.Table, images: list[Loaded], logits: NDArray[np.float32], model: bundle.Spec, spec: ScorerSpec
) -> pa.Table:
    """One row of `schema.PREDICTIONS` for each row of the manifest, in the same order."""
    failed = np.array([image.error is not None for image in images])
    p_fake = bundle.p_fake_of(logits, model.temperature).astype(np.float32)
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
