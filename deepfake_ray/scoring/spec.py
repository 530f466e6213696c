"""What a scorer needs to know, and what it says of a chunk."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deepfake_ray.images.decode import Limits
from deepfake_ray.models.scores import Threshold
from deepfake_ray.storage import files

if TYPE_CHECKING:
    pass


MIN_IMAGES_TO_STOP = 1_000
"""Fewer images than this say too little about the share of errors to stop a run."""


@dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """What a scorer needs."""

    model: str
    chunks: str
    """The directory that the chunks' files are written to."""
    threshold: Threshold
    batch_size: int
    num_crops: int
    precision: str
    """One of `schema.PRECISIONS`, the same on all nodes."""
    compile: bool = False
    limits: Limits
    image_timeout_s: float
    max_error_share: float
    device: str
    """`cpu` or `cuda`."""
    run_id: str
    known: str | None = None
    """Of a file of `reuse.build`."""
    degradations: tuple[str, ...] = ()
    """Names of `DEGRADATIONS`: each image is scored after each of them, instead of as it is."""


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
    seconds: Mapping[str, float] = field(default_factory=dict)
    """In each of `STAGES`."""


STAGES = ("fetch", "decode", "forward", "write")
"""Of the processes that load and score: waiting for bytes; making pixels of them; the model; the chunk's file."""


def chunk_file(folder: str, index: int) -> str:
    """Where the rows of a chunk go."""
    return files.join(folder, f"chunk-{index:07d}.parquet")
