"""One frozen dataclass a job. The command line is generated from it: a field is a flag, its docstring the help."""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

from deepfake_ray.errors import UserError

Choice = Literal["auto", "yes", "no"]
Precision = Literal["auto", "bf16", "fp32"]

THRESHOLD_NAMES = ("default", "balanced", "fpr_1", "fpr_5")


def _require(condition: bool, rule: str, value: object, remedy: str) -> None:
    if not condition:
        raise UserError(f"{rule}: got {value!r}; {remedy}.")


def _positive(name: str, value: float | None) -> None:
    if value is not None:
        _require(value > 0, f"{name} must be greater than 0", value, "leave it out for the default")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What every job takes."""

    output: str
    """Directory or URI (s3://...) to write to. Must be empty, or not be there."""
    limit: int | None = None
    """Use at most this many images (of each split, where there are splits)."""
    seed: int = 0
    """Seed of everything random: initial weights, row order, augmentation."""
    use_gpu: Choice = "auto"
    """Run the model on GPUs. auto: where the cluster has some."""
    precision: Precision = "auto"
    """Arithmetic of the model, one for the whole run. auto: bf16 where every node that computes does so natively, else
    fp32."""
    max_image_bytes: int = 100 * 1024 * 1024
    """An image of more bytes becomes the error too_large, unread."""
    max_image_pixels: int = 100_000_000
    """An image that declares more pixels becomes the error too_large, undecoded."""
    shared_storage: bool = False
    """On a cluster of several nodes: local paths are a file system that all nodes share."""
    resume: bool = False
    """Go on with an unfinished output of the same images and settings. A finished one of the same is left as it is,
    but for images that the storage failed to give, which are tried again."""
    verbose: bool = False
    """Show Ray's own log lines too."""
    json: bool = False
    """Print the summary as one JSON object on standard output, and nothing else there; of a job that fails,
    {"error": ..., "exit_code": ...}."""

    def __post_init__(self) -> None:
        for name in ("limit", "max_image_bytes", "max_image_pixels"):
            _positive(name.replace("_", "-"), getattr(self, name))
        _require(self.seed >= 0, "seed must not be negative", self.seed, "try 0")
        _require(bool(self.output), "output must name a directory", self.output, "give --output DIRECTORY")

    def to_json(self) -> dict[str, Any]:
        """The resolved configuration, ready for `json.dump`."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists, as in a file
        return found

    @classmethod
    def completed(cls, before: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that an older version wrote, with the defaults of those that it did not know."""
        known = {field.name: field.default for field in fields(cls) if field.default is not MISSING}
        defaults: dict[str, Any] = json.loads(json.dumps(known))
        return {**defaults, **before}


@dataclass(frozen=True, kw_only=True)
class LabelledDataConfig:
    """Where labelled images are and how their folders are read."""

    data: str
    """Labelled images: a folder or s3:// prefix like Train|Validation|Test/Fake|Real/..., or a Parquet/CSV with
    uri and label."""
    labels: str | None = None
    """A Parquet or CSV with uri,label (and split, source, group) that overrides what the folder names say."""
    group_regex: str | None = None
    """Regular expression on the file name; its first group names the person or video that the image is of. Images
    of one group are never put into different splits."""
    split_by: Literal["auto", "folder"] = "auto"
    """auto: make the splits that the folders do not have. folder: the folders must have them."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LabelledDataConfig, JobConfig):
    """Fine-tune a classifier to tell real images from fake ones, and write it as a bundle (OUTPUT/model)."""

    arch: str = "cnn"
    """cnn (small, from scratch), resnet50, or any torchvision classification model by its name."""
    weights: str | None = None
    """Initial weights. imagenet: torchvision's download. none: random. Or a path/URI of a torchvision state_dict
    (.pth, .safetensors) or of a bundle. Default: none for cnn, imagenet for every other arch."""
    recipe: Literal["baseline", "robust"] = "baseline"
    """baseline: the original system's. The image is resized to a square; flip and rotation, each with p = .5; Adam.
    robust, for images that were re-saved: squares are cut out of images that are large enough, their pixels
    untouched; flip with p = .5; JPEG or WebP re-compression and blur, each with p = .1; AdamW."""
    epochs: int = 8
    """Passes over the training split."""
    num_workers: int | str | None = None
    """Workers that train, each with its own copy of the model: a number; or MIN-MAX, as many as the cluster has room
    for while nodes come and go, at most one a GPU or CPU node beyond MIN. Default: one a GPU, else one a CPU node."""
    learning_rate: float | None = None
    """Peak learning rate, for the global batch, whatever the number of workers. Default: 0.002 from random weights,
    0.0003 from given ones."""
    lr_backbone: float | None = None
    """Peak learning rate of all but the last layer. Default: that of --learning-rate."""
    freeze_backbone_epochs: int = 0
    """Train the last layer alone in the first so many epochs; batch norms keep the statistics they came with."""
    weight_decay: float = 0.0
    """Adam's L2 penalty; AdamW's decay of the weights, for --recipe robust."""
    label_smoothing: float = 0.0
    """Share of each label that is given to both classes alike."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """balanced: in the loss, each class counts the same, however many images it has. none: each image does."""
    warmup_share: float = 0.1
    """Share of all steps in which the rate rises to its peak; it falls to 0 along a cosine afterwards."""
    global_batch_size: int | None = None
    """Images a step, over all workers. Default: 128 for images up to 64 px, else 32; two a worker at least."""
    micro_batch_size: int | None = None
    """Images that a worker computes at a time; its gradients of a step are added up. Lower it when the memory does
    not suffice. Batch norms see so many images at a time. Default: the worker's whole share of the step."""
    image_size: int | None = None
    """Side in pixels of the square that images are resized to, or that is cut out of them. Default: the data's median
    short side, rounded down to a multiple of 32, no larger than what the arch was made for (cnn: 128)."""
    leaks: Literal["error", "drop", "allow"] = "error"
    """Where the same image (the same bytes) is in two splits or in two classes. error: refuse to train. drop: leave it
    out of train where validation or test has it, out of validation where test has it, and out of all where it is in
    both classes; audit.json lists what was left out. allow: train on it all the same."""
    allow_leaks: bool = False
    """The same as --leaks allow."""
    reencode: bool = False
    """Send the square of each image through a JPEG of quality 90, in training and in scoring: for classes whose files
    give them away (see the audit's zero_pixel_auc)."""
    early_stopping_patience: int = 5
    """Stop after this many epochs without a better validation AUC."""
    checkpoint_every_steps: int | None = None
    """Save the run's state after so many steps, too. Default: after each epoch. The last and the best are kept."""
    max_failures: int = 3
    """How many times lost workers are replaced, from the last checkpoint, before the run fails."""
    leave_one_source_out: bool = False
    """Train on all sources, then once without each, and test every model on every source: a matrix of how well
    fakes are found that no training image was like."""
    mlflow_uri: str | None = None
    """MLflow tracking server or store to log the run to (needs pip install -e '.[mlflow]')."""
    max_error_share: float = 0.01
    """Fail when a larger share of the images of an epoch cannot be read. The others are trained on; the unreadable
    ones are counted in history.csv."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "epochs", "learning_rate", "lr_backbone", "global_batch_size", "image_size", "early_stopping_patience",
            "checkpoint_every_steps",
        ):  # fmt: skip
            _positive(name.replace("_", "-"), getattr(self, name))
        size = self.micro_batch_size
        _require(size is None or size >= 2, "micro-batch-size must be 2 at least, for batch norm", size, "try 8")
        _require(0 <= self.label_smoothing < 1, "label-smoothing must be in [0, 1)", self.label_smoothing, "try 0.1")
        frozen = self.freeze_backbone_epochs
        _require(0 <= frozen <= self.epochs, f"freeze-backbone-epochs must be in 0..{self.epochs}", frozen, "lower it")
        if self.allow_leaks:
            _require(self.leaks != "drop", "allow-leaks and leaks must agree", self.leaks, "leave one of them out")
            object.__setattr__(self, "leaks", "allow")
        self.worker_range()
        _require(0 <= self.warmup_share < 1, "warmup-share must be in [0, 1)", self.warmup_share, "try 0.1")
        _require(self.weight_decay >= 0, "weight-decay must not be negative", self.weight_decay, "try 0")
        _require(self.max_failures >= 0, "max-failures must not be negative", self.max_failures, "try 3")
        _require_share("max-error-share", self.max_error_share)

    @classmethod
    def completed(cls, before: Mapping[str, Any]) -> dict[str, Any]:
        """As of every job; `allow_leaks` alone is of a version that knew no `leaks`."""
        return super().completed({"leaks": "allow", **before} if before.get("allow_leaks") else before)

    def worker_range(self) -> tuple[int, int] | None:
        """The least and the most workers, or None where the cluster decides.

        Raises:
            UserError: num_workers is neither a number nor MIN-MAX.
        """
        if self.num_workers is None:
            return None
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(self.num_workers))
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        _require(
            1 <= least <= most, "num-workers must be a number from 1 on, or MIN-MAX", self.num_workers, "try 2 or 1-4"
        )
        return least, most


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(JobConfig):
    """How images are scored, whatever for."""

    model: str
    """The bundle: the directory or URI that training wrote as OUTPUT/model."""
    num_workers: int | None = None
    """Actors that score, each with its own model. Default: one a GPU, else one a CPU."""
    batch_size: int | None = None
    """Images a forward pass. Default: 64 on a GPU and for images of up to 64 px, else 32."""
    crops: int = 1
    """Squares that are cut out of each image and scored, for a model that was trained on crops (--recipe robust): the
    mean of their logits counts."""
    skip_known: str | None = None
    """Output of an earlier run: its scores by the same model are taken over for images whose etag, or size and time,
    are the same in the listing, which are not fetched then, and for bytes that are the same, which are not decoded."""
    threshold: str = "balanced"
    """An image is called fake from this p_fake on: default (.5), balanced, fpr_1, fpr_5 (chosen on the model's
    validation split), or a number between 0 and 1."""
    max_error_share: float = 0.5
    """Stop early when more than this share of the images, after the first 1,000, cannot be read; or when the storage
    fails for more than this share of any 1,000 images that follow one another."""
    compile: bool = False
    """Compile the model for the machine first, which takes a minute or two and a C++ compiler; its logits are the same
    to five digits. Whether it pays depends on the machine: a ResNet50 became 1.2 times as fast in one process, and no
    faster in two that shared a CPU's memory."""
    profile: bool = False
    """Write into run.json where the time went: seconds and share of fetching, decoding, the model and writing, and
    Ray Data's statistics."""
    image_timeout_s: float = 60.0
    """Seconds for one request to the storage, and for decoding one image; an image that takes longer becomes the
    error timeout. Requests that failed are repeated for some minutes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("num-workers", self.num_workers)
        _positive("batch-size", self.batch_size)
        _positive("image-timeout-s", self.image_timeout_s)
        _positive("crops", self.crops)
        _require_share("max-error-share", self.max_error_share)
        if self.threshold not in THRESHOLD_NAMES:
            try:
                in_range = 0 <= float(self.threshold) <= 1
            except ValueError:
                in_range = False
            _require(
                in_range,
                f"threshold must be one of {', '.join(THRESHOLD_NAMES)} or a number in [0, 1]",
                self.threshold,
                "try balanced",
            )


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ScoringOptions):
    """Score every image of a folder, bucket or table with a bundle, into Parquet: one row an image, always."""

    images: tuple[str, ...]
    """Images to score, one or several of: a folder, an s3:// prefix, one image, a Parquet or CSV with a column uri,
    a .txt with a URI a line, the manifest.json of an S3 Inventory."""
    include: tuple[str, ...] = ()
    """Glob patterns on the path below --images (or on the whole uri, of a table); * also stands for /. Only what
    matches one is scored, whatever its suffix. Default: what has an image's suffix, and files without a suffix that
    begin like an image (in a bucket: all of these but well-known names such as LICENSE and _SUCCESS)."""
    exclude: tuple[str, ...] = ()
    """Glob patterns like those of --include; what matches one is not scored."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(bool(self.images), "images must name a place", self.images, "give --images FOLDER")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoringOptions, LabelledDataConfig, JobConfig):
    """Score a labelled split with a bundle and write metrics, a classification report, figures and report.html."""

    data: str = ""
    """Labelled images: a folder or s3:// prefix like Train|Validation|Test/Fake|Real/..., or a Parquet/CSV with
    uri and label."""
    model: str = ""
    """The bundle: the directory or URI that training wrote as OUTPUT/model. Default: that of --predictions."""
    split: Literal["train", "validation", "test", "all"] | None = None
    """Which images to evaluate on. Default: test; all with --predictions, and of a place without split folders of which
    the model has seen no image."""
    predictions: str | None = None
    """Output of jobs/score.py: its scores are evaluated, nothing is scored. The labels come from --labels (a Parquet
    or CSV with uri and label) or --data; images without a label are left out."""
    degrade: int = 0
    """Score so many images (drawn at random, both classes alike) again after re-compression (JPEG, WebP), blur,
    shrinking and the way through social media: eleven more forward passes each. 0: none."""
    compare: str | None = None
    """Output of another evaluation: both models side by side on the images that are in both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.degrade >= 0, "degrade must not be negative", self.degrade, "try 500")
        if self.predictions is None:
            _require(bool(self.data), "data must name labelled images", self.data, "give --data FOLDER")
            _require(bool(self.model), "model must name a bundle", self.model, "give --model RUN/model")
        else:
            _require(bool(self.data or self.labels), "predictions need labels", self.predictions, "give --labels TABLE")
            _require(self.limit is None, "predictions are evaluated whole", self.limit, "leave --limit out")


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(LabelledDataConfig, JobConfig):
    """Make of a bundle one that computes in 8-bit integers (OUTPUT/model), which is several times faster on CPUs with
    VNNI and nearly as good: measure it with jobs/evaluate.py --compare."""

    model: str
    """The bundle: the directory or URI that training wrote as OUTPUT/model."""
    calibration_images: int = 256
    """Training images that say which values the integers are to stand for. Temperature and thresholds are chosen anew,
    on the validation split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("calibration-images", self.calibration_images)


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Generate a small synthetic sample, train on it, score it and evaluate it: the whole job in one command."""

    output: str = "runs"
    """Local directory under which a fresh directory is made for this run."""
    seed: int = 0
    """Seed of the sample and of the training."""
    verbose: bool = False
    """Show Ray's own log lines too."""
    json: bool = False
    """Print the summary as one JSON object on standard output, and nothing else there; of a job that fails,
    {"error": ..., "exit_code": ...}."""


def _require_share(name: str, value: float) -> None:
    _require(0 <= value <= 1, f"{name} must be in [0, 1]", value, "give a share, as 0.5 for half")


FREE_TO_CHANGE = frozenset(
    {"output", "resume", "verbose", "num_workers", "use_gpu", "max_error_share", "max_failures", "shared_storage"}
    | {"image_timeout_s", "profile", "versions", "git_revision", "checkpoint_every_steps", "mlflow_uri", "json"}
    | {"allow_leaks"}  # leaks says it
)
"""What a resumed run may be told otherwise: it changes no result."""


def require_same_run(before: Mapping[str, Any], now: Mapping[str, Any], free: frozenset[str] = FREE_TO_CHANGE) -> None:
    """Compare the settings of an earlier run with those that it is to go on with.

    Raises:
        UserError: names the first setting that differs.
    """
    for name in sorted(set(now) | set(before)):
        if name not in free and now.get(name) != before.get(name):
            raise UserError(
                f"--resume goes on with the same run: {name} was {before.get(name)!r} and is now {now.get(name)!r}; "
                "set it back, or write to a new output."
            )
