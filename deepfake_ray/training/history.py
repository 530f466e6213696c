"""What the epochs of a training run came to. Knows neither Ray nor torch."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepfake_ray import schema
from deepfake_ray.evaluation import metrics

HistoryRow = dict[str, Any]
"""A line of history.csv."""


@dataclass
class Tally:
    """Sums over the images of an epoch on one rank, added over the ranks, then divided once."""

    num_images: int = 0
    num_errors: int = 0
    first_error: str = ""
    loss_sum: float = 0.0
    num_correct: float = 0.0
    wait_s: float = 0.0
    errors_by_code: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.num_images + other.num_images,
            self.num_errors + other.num_errors,
            self.first_error or other.first_error,
            self.loss_sum + other.loss_sum,
            self.num_correct + other.num_correct,
            self.wait_s + other.wait_s,
            dict(Counter(self.errors_by_code) + Counter(other.errors_by_code)),
        )


@dataclass(frozen=True)
class Shard:
    """What one rank contributes to an epoch."""

    train: Tally
    validation: Tally
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]


def problem_of(shards: Sequence[Shard], max_error_share: float) -> str:
    """Why a run cannot go on after this epoch, or nothing."""
    train, validation = _sums(shards)
    for name, tally in (("training", train), ("validation", validation)):
        share = tally.num_errors / max(1, tally.num_errors + tally.num_images)
        if share > max_error_share:
            return (
                f"{share:.1%} of the {name} images cannot be read, over --max-error-share {max_error_share:g}; "
                f"the first: {tally.first_error}"
            )
    if not math.isfinite(train.loss_sum):
        return "the training loss is no longer finite; lower --learning-rate"
    found = np.unique(np.concatenate([shard.labels for shard in shards]))
    missing = [name for index, name in enumerate(schema.CLASSES) if index not in found]
    return f"no {missing[0]} validation image could be read" if missing else ""


def summarise(epoch: int, shards: Sequence[Shard], learning_rate: float, epoch_s: float) -> HistoryRow:
    """One epoch over all ranks: sums are added up, then divided once; the AUC is that of all logits together.

    Args:
        epoch: from 1.
        shards: of each rank.
        learning_rate: after the epoch.
        epoch_s: seconds.
    """
    train, validation = _sums(shards)
    logits = np.concatenate([shard.logits for shard in shards])
    labels = np.concatenate([shard.labels for shard in shards])
    scores = metrics.threshold_free(labels, logits, 1.0)
    return {
        "epoch": epoch,
        "learning_rate": learning_rate,
        "train_loss": train.loss_sum / max(1, train.num_images),
        "train_accuracy": train.num_correct / max(1, train.num_images),
        "val_loss": float(scores["log_loss"] or 0.0),
        "val_accuracy": float(((logits >= 0) == (labels == schema.FAKE)).mean()),
        "val_auc": float(scores["roc_auc"] or 0.0),
        "num_workers": len(shards),
        "epoch_s": epoch_s,
        "images_per_s": (train.num_images + validation.num_images) / epoch_s,
        "data_wait_share": (train.wait_s + validation.wait_s) / len(shards) / epoch_s,
        "num_train_errors": train.num_errors,
        "num_val_errors": validation.num_errors,
    }


def _sums(shards: Sequence[Shard]) -> tuple[Tally, Tally]:
    return sum((shard.train for shard in shards), Tally()), sum((shard.validation for shard in shards), Tally())


def best_epoch(history: list[HistoryRow]) -> int:
    """Index of the first epoch with the greatest validation AUC."""
    return max(range(len(history)), key=lambda index: (history[index]["val_auc"], -index))


def stops_early(history: list[HistoryRow], patience: int) -> bool:
    """Whether `patience` epochs have passed without a better validation AUC."""
    return bool(history) and len(history) - 1 - best_epoch(history) >= patience
