"""What a scorer needs to know, and what it says of a chunk."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from deepfake_ray.errors import UserError
from deepfake_ray.images.decode import Limits
from deepfake_ray.images.preprocessing import CROP
from deepfake_ray.models.scores import Threshold
from deepfake_ray.models.spec import Spec
from deepfake_ray.schema import AUTO, BF16
from deepfake_ray.storage import files

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


GPU_BATCH_SIZE, CPU_BATCH_SIZE = 64, 32
SMALL_BATCH_SIZE, SMALL = 64, 64 * 64
"""On a CPU, of images of at most so many pixels: the weights are brought into the cache once per batch."""


def default_batch_size(image_size: int, *, use_gpu: bool) -> int:
    """Images per forward pass, where nobody says: for squares of `image_size` pixels a side."""
    if use_gpu:
        return GPU_BATCH_SIZE
    return SMALL_BATCH_SIZE if image_size**2 <= SMALL else CPU_BATCH_SIZE


def require_suited(
    model: Spec, place: str, *, crops: int, use_gpu: str = "auto", precision: str = AUTO, compiled: bool = False
) -> None:
    """Refuse what a model cannot do.

    Args:
        model: the bundle's.
        place: of the bundle.
        crops: per image.
        use_gpu: auto, yes or no, as asked.
        precision: auto, bf16 or fp32, as asked.
        compiled: whether it is to be compiled.

    Raises:
        UserError: it was not trained on crops; or it computes in integers, on CPUs only.
    """
    if crops > 1 and model.preparation.resize != CROP:
        raise UserError(
            f"crops above 1 need a model that was trained on crops: got {crops}, and {place} resizes the "
            "whole image; leave it out, or train with --recipe robust."
        )
    if model.scales and (compiled or use_gpu == "yes" or precision == BF16):
        raise UserError(
            f"A quantised model runs on CPUs, in integers: {place} cannot be used with --compile, --use-gpu yes "
            "or --precision bf16; leave them out, or give the model that it was made of."
        )
