"""Scores chunks of a manifest: fetch, decode, forward, and a Parquet file each. Knows no Ray."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepfake_ray.data import manifest
from deepfake_ray.errors import OF_THE_STORAGE, JobError
from deepfake_ray.images.decode import Pixels
from deepfake_ray.images.loading import Loaded, Loader, given_up
from deepfake_ray.images.preprocessing import spread_crops
from deepfake_ray.images.stopwatch import Stopwatch
from deepfake_ray.models import bundle
from deepfake_ray.models.scores import HIGHEST
from deepfake_ray.processes.allocator import keep_freed_memory
from deepfake_ray.processes.isolation import Items
from deepfake_ray.processes.memory_limit import lifted
from deepfake_ray.scoring.reuse import Known
from deepfake_ray.scoring.rows import predictions
from deepfake_ray.scoring.spec import MIN_IMAGES_TO_STOP, Report, ScorerSpec, chunk_file
from deepfake_ray.storage import files

if TYPE_CHECKING:
    from torch import Tensor

    from deepfake_ray.models.inference import Predictor


Place = tuple[int, int]
"""Of an image in its chunk, and of a degradation among those of the run (0 without)."""


class ChunkScorer:
    """Fetches, decodes, scores and writes, one chunk a call: what a CPU does."""

    def __init__(self, spec: ScorerSpec):
        keep_freed_memory()
        self._num_crops = spec.num_crops
        self._reader = _Reader(spec)
        self._forward = _Forward(spec)

    def __call__(self, chunk: manifest.Chunk, items: Items) -> Report:
        """Score a chunk and write its file; `items` are positions in it."""
        work = LoadedChunk(chunk, manifest.read_chunk(chunk), time.time())
        batch = self._forward.batch()
        for position, (image, crops) in enumerate(self._reader.read(work.rows, items)):
            work.images.append(image)
            for crop, pixels in enumerate(crops):
                batch.add((position, crop // self._num_crops), pixels)
        work.seconds = self._reader.stopwatch.take()
        return self._forward.write(work, batch.finish())


@dataclass
class LoadedChunk:
    """A chunk on its way from a loader to a scorer."""

    chunk: manifest.Chunk
    rows: pa.Table
    started_at: float
    images: list[Loaded] = field(default_factory=list)
    """Everything known of each, without pixels; fewer than rows if the storage failed too often."""
    pixels: list[Pixels] = field(default_factory=list)
    """Crops of the images to be scored, one after the other."""
    places: list[Place] = field(default_factory=list)
    """What `pixels` are of."""
    seconds: dict[str, float] = field(default_factory=dict)
    """That the loading took, by stage."""


class ChunkLoader:
    """Fetches and decodes, one chunk a call: what CPUs do for a GPU."""

    def __init__(self, spec: ScorerSpec):
        keep_freed_memory()
        self._num_crops = spec.num_crops
        self._reader = _Reader(spec)

    def __call__(self, chunk: manifest.Chunk, items: Items) -> LoadedChunk:
        """Load a chunk; `items` are positions in it."""
        work = LoadedChunk(chunk, manifest.read_chunk(chunk), time.time())
        for position, (image, crops) in enumerate(self._reader.read(work.rows, items)):
            work.images.append(image)
            for crop, pixels in enumerate(crops):
                work.pixels.append(pixels)
                work.places.append((position, crop // self._num_crops))
        work.seconds = self._reader.stopwatch.take()
        return work


class DeviceScorer:
    """Scores and writes loaded chunks: what a GPU does."""

    def __init__(self, spec: ScorerSpec):
        self._forward = _Forward(spec)

    def __call__(self, work: LoadedChunk) -> Report:
        """Score a chunk and write its file."""
        batch = self._forward.batch()
        for place, pixels in zip(work.places, work.pixels, strict=True):
            batch.add(place, pixels)
        return self._forward.write(work, batch.finish())


class _Reader:
    """Images of a chunk, in order, with what is known of them from an earlier run."""

    def __init__(self, spec: ScorerSpec):
        self._max_error_share = spec.max_error_share
        self._known = None if spec.known is None else Known(spec.known)
        self.stopwatch = Stopwatch()
        self._loader = Loader(
            limits=spec.limits,
            places=spread_crops(spec.num_crops),
            degradations=spec.degradations,
            preparation=bundle.load_spec(spec.model).preparation,
            timeout_s=spec.image_timeout_s,
            recall=None if self._known is None else self._known.by_sha256,
            stopwatch=self.stopwatch,
        )

    def read(self, rows: pa.Table, items: Items) -> Iterator[tuple[Loaded, tuple[Pixels, ...]]]:
        """Everything known of each image, without pixels; and its crops, if it is to be scored.

        Ends early when the storage fails too often: wrong credentials must not yield a million error rows.
        """
        uris = rows["uri"].to_pylist()
        settled = {} if self._known is None else self._known.by_version(rows)
        settled |= {position: Loaded(error=given_up(reason)) for position, reason in items.given_up.items()}
        positions = [position for position in range(len(uris)) if position not in settled]
        loaded = self._loader.load_all([uris[i] for i in positions], lambda i: items.at(positions[i]))
        num_failed = 0
        for position in range(len(uris)):
            image = settled[position] if position in settled else next(loaded)
            crops, image.crops = image.crops, ()  # the pixels are not kept until the chunk is written
            yield image, crops
            num_failed += image.error is not None and image.error.code in OF_THE_STORAGE
            if position + 1 >= MIN_IMAGES_TO_STOP and num_failed > self._max_error_share * (position + 1):
                return


class _Forward:
    """Holds the model; scores batches and writes chunks' files."""

    def __init__(self, spec: ScorerSpec):
        from deepfake_ray.models.inference import Predictor  # imports torch, which the driver does without

        self._spec = spec
        self._predictor = Predictor(
            spec.model,
            device=spec.device,
            precision=spec.precision,
            compiled_for=spec.batch_size if spec.compile else None,
        )
        self._stopwatch = Stopwatch()

    def batch(self) -> "FixedBatch":
        return FixedBatch(self._predictor, self._spec.batch_size, self._stopwatch)

    def write(self, work: LoadedChunk, scored: Mapping[Place, float]) -> Report:
        images = work.images
        errors = [image.error for image in images if image.error is not None]
        example = next((i for i in reversed(range(len(images))) if images[i].error is not None), None)
        is_written = len(images) == len(work.rows)
        if is_written:
            with self._stopwatch.at("write"):
                self._write(work, scored)
        return Report(
            index=work.chunk.index,
            num_images=len(images),
            num_known=sum(image.logit is not None for image in images),
            errors_by_code=Counter(str(error.code) for error in errors),
            example="" if example is None else f"{work.rows['uri'][example]}: {images[example].error}",
            is_written=is_written,
            started_at=work.started_at,
            ended_at=time.time(),
            seconds=work.seconds | self._stopwatch.take(),
        )

    def _write(self, work: LoadedChunk, scored: Mapping[Place, float]) -> None:
        known = np.array([np.nan if image.logit is None else image.logit for image in work.images], np.float32)
        logits = np.repeat(known[:, None], max(1, len(self._spec.degradations)), axis=1)
        for place, logit in scored.items():
            require_number(logit, str(work.rows["uri"][place[0]]))
            logits[place] = logit
        table = predictions(work.rows, work.images, logits, self._predictor.spec, self._spec)
        with files.new_file(chunk_file(self._spec.chunks, work.chunk.index)) as path:
            pq.write_table(table, path, compression="zstd")


def require_number(logit: float, image: str) -> None:
    """Refuse what is no score.

    Raises:
        JobError: the logit is not finite.
    """
    if not abs(logit) < HIGHEST:  # NaN, too: a comparison would call it real
        raise JobError(
            f"the model gives {logit} for {image}, which is no score: its weights are broken, train again, or use "
            "another model"
        )


class FixedBatch:
    """Collects pixels and has them scored, always `batch_size` at a time.

    Every forward pass has the same shape, so the same bytes get the same logit, to the bit, wherever they lie.
    """

    def __init__(self, predictor: "Predictor", batch_size: int, stopwatch: Stopwatch):
        self._predictor, self._stopwatch = predictor, stopwatch
        size = predictor.spec.preparation.image_size
        self._pixels = np.zeros((batch_size, size, size, 3), np.uint8)
        self._places: list[Place] = []
        self._scored: list[tuple[list[Place], Tensor]] = []

    def add(self, place: Place, pixels: Pixels) -> None:
        """Take in one crop; scores the batch when it is full."""
        self._pixels[len(self._places)] = pixels
        self._places.append(place)
        if len(self._places) == len(self._pixels):
            self._forward()

    def finish(self) -> dict[Place, float]:
        """place -> logit, the mean of its crops'."""
        if self._places:
            self._forward()
        of_crops: dict[Place, list[float]] = {}
        for places, logits in self._scored:
            with self._stopwatch.at("forward"):
                values = logits.tolist()  # on a GPU, waits for it
            for place, logit in zip(places, values, strict=False):  # the last batch may not be full
                of_crops.setdefault(place, []).append(logit)
        return {place: fmean(logits) for place, logits in of_crops.items()}

    def _forward(self) -> None:
        # On a GPU this returns at once: the next batch is collected while this one is copied and scored.
        with self._stopwatch.at("forward"), lifted():
            self._scored.append((self._places, self._predictor.start(self._pixels)))
        self._places = []
