"""How sure a figure is: 95 % intervals, by image or by whole groups of images. Knows neither Ray nor torch."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, norm

LEVEL = 0.95
RESAMPLES = 1000
MAX_DRAWS = 50_000_000
"""Resamples times images: large sets have fewer resamples, and narrow intervals, whose ends matter less."""
MIN_RESAMPLES = 200
MIN_CLUSTERS = 10
"""Fewer groups (or, for a bootstrap, single images) do not show how much they differ: no interval is given."""
MAX_STEPS = 10**8
"""Of the exact sign test; larger sets have its normal approximation."""

Interval = tuple[float, float]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Clusters:
    """Which images stand for one fact: those of a group (a video, a person), or each image for itself."""

    members: NDArray[np.int64]
    """(N,) the number of each image's cluster, from 0 without gaps."""
    by_group: bool
    """Whether there is a group of several images."""

    @classmethod
    def of(cls, groups: Sequence[Hashable] | pd.Series) -> "Clusters":
        """Of a column of groups; an image without one (None, NaN) is a cluster of its own."""
        codes, names = pd.factorize(np.asarray(groups, object))  # -1: none
        alone = codes < 0
        members = np.where(alone, len(names) + np.cumsum(alone) - 1, codes).astype(np.int64)
        return cls(members, by_group=len(names) + int(alone.sum()) < len(members))

    @property
    def by(self) -> str:
        """`group` or `image`: what is drawn."""
        return "group" if self.by_group else "image"

    def count(self, among: NDArray[np.bool_] | None = None) -> int:
        """How many clusters (N,) images are of; default all."""
        return len(np.unique(self.members if among is None else self.members[among]))

    def are_enough(self, labels: NDArray[np.int64]) -> bool:
        """Whether each class that there is has clusters enough for figures that depend on it."""
        return all(self.count(labels == label) >= MIN_CLUSTERS for label in np.unique(labels))


def wilson(successes: float, trials: float) -> Interval | None:
    """Wilson's score interval of a proportion (Wilson 1927); None of no trials.

    Trials need not be whole: of images in groups there are effectively fewer.
    """
    if not trials:
        return None
    z = float(norm.ppf((1 + LEVEL) / 2))
    share = successes / trials
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * float(np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)))
    return (0.0 if share == 0 else float(middle - half)), (1.0 if share == 1 else float(middle + half))


def proportion(right: ArrayLike, clusters: Clusters, among: NDArray[np.bool_] | None = None) -> Interval | None:
    """The interval of a share of images: Wilson's; by group with the number of images that they are effectively worth.

    That number is p (1 - p) / V, as Korn and Graubard 1998 have it, V being the variance by a jackknife of whole
    groups: images of one group that fare alike count as one. Where all images fare alike, or each group is half
    right, groups would show no variance at all: one more group that is all right and one that is all wrong, both of
    average size, enter V (and not p), which holds the rate of coverage from ten groups on.

    Args:
        right: bool (N,).
        clusters: of the N images.
        among: bool (N,), the images that count; default all.

    Returns:
        None of no image, and by group of fewer than `MIN_CLUSTERS` groups.
    """
    y, members = np.asarray(right, bool), clusters.members
    if among is not None:
        y, members = y[among], members[among]
    if not clusters.by_group:
        return wilson(int(y.sum()), len(y))
    number, members = _numbered(members)
    if number < MIN_CLUSTERS:
        return None
    sizes = np.bincount(members, minlength=number).astype(np.float64)
    average = sizes.mean()
    found = np.append(np.bincount(members, weights=y, minlength=number), [average, 0.0])
    sizes = np.append(sizes, [average, average])
    share = found.sum() / sizes.sum()
    moved = (found - share * sizes) / (sizes.sum() - sizes)  # by leaving a group out
    variance = (1 - 1 / len(sizes)) * float(moved @ moved)
    effective = min(len(y), share * (1 - share) / variance)
    return wilson(float(y.mean()) * effective, effective)


def bootstrap(
    figures: Callable[[NDArray[np.float64]], Mapping[Key, float]],
    labels: NDArray[np.int64],
    clusters: Clusters,
    content: Iterable[ArrayLike],
    seed: int = 0,
) -> dict[Key, Interval | None]:
    """Percentile intervals of figures over resamples of the images (Efron 1979), or of whole groups of them.

    Images of one video or person are not independent: counting them as such makes intervals too narrow.

    Args:
        figures: weights (N,), how often an image was drawn -> figures; NaN where a resample has none.
        labels: int (N,), REAL or FAKE.
        clusters: of the N images.
        content: numbers (N,) that decide the figures beside the labels, such as logits. Clusters are drawn in an order
            that these make, so that neither the order of the rows nor the names of groups change an interval.
        seed: of the resamples.

    Returns:
        An interval for each figure; None for one that most resamples do not have, and for all where a class has fewer
        than `MIN_CLUSTERS` clusters.
    """
    if not clusters.are_enough(labels):
        return dict.fromkeys(figures(np.ones(len(labels))))
    members = _by_content(clusters, [labels, *content])
    number = int(members.max()) + 1
    resamples = int(np.clip(MAX_DRAWS // len(labels), MIN_RESAMPLES, RESAMPLES))
    random = np.random.default_rng(seed)
    drawn: list[Mapping[Key, float]] = []
    for _ in range(resamples):
        counts = np.bincount(random.integers(number, size=number), minlength=number).astype(np.float64)
        drawn.append(figures(counts[members]))
    return {name: _middle(np.array([one[name] for one in drawn])) for name in drawn[0]}


def unless_certain(interval: Interval | None) -> Interval | None:
    """None in place of an interval of no width: no resample of images without an error has one, and an AUC of 1 would
    look as sure on twenty images as on a million.
    """
    return None if interval is None or interval[0] == interval[1] else interval


def sign_test(difference: NDArray[np.int64], clusters: Clusters) -> float:
    """The two-sided p-value of the hypothesis that differences are as often for one side as for the other.

    The sign of each cluster's sum is tossed: exact, and by image McNemar's exact test (McNemar 1947). Beyond
    `MAX_STEPS` the sum of the tosses is taken as normal, which is the test of Yang, Sun and Hardin 2010.

    Args:
        difference: int (N,), 1 where only the one is right, -1 where only the other is, else 0.
        clusters: of the N images.
    """
    sums = np.bincount(clusters.members, weights=difference).astype(np.int64)
    found = abs(int(sums.sum()))
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    total = int(sizes @ counts)
    if len(sizes) > 1 and int(counts.sum()) * total > MAX_STEPS:
        return float(2 * norm.sf(found / np.sqrt(sizes.astype(np.float64) ** 2 @ counts)))
    if len(sizes) == 1:  # all clusters count alike: heads among so many tosses
        tosses = int(counts[0])
        return float(min(1.0, 2 * binom.cdf((tosses - found // int(sizes[0])) // 2, tosses, 0.5)))
    chances = np.ones(1)  # of the sum of those that fall to the one side
    for size, count in zip(sizes, counts, strict=True):
        longer = np.zeros(len(chances) + int(size * count))
        for heads, chance in enumerate(binom.pmf(np.arange(count + 1), count, 0.5)):
            longer[heads * size : heads * size + len(chances)] += chance * chances
        chances = longer
    return float(min(1.0, 2 * chances[: (total - found) // 2 + 1].sum()))


def _numbered(members: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """How many clusters some images are of, and their numbers without gaps."""
    names, numbers = np.unique(members, return_inverse=True)
    return len(names), numbers


def _by_content(clusters: Clusters, columns: Sequence[ArrayLike]) -> NDArray[np.int64]:
    """(N,) the number of each image's cluster, in an order that depends on nothing but what the clusters hold."""
    values = np.stack([np.asarray(column, np.float64) for column in columns]) + 0.0  # -0.0 is 0.0
    keys = np.zeros(values.shape[1], np.uint64)
    for column in values:
        keys = pd.util.hash_array(keys * np.uint64(3) + pd.util.hash_array(column))
    sums = np.zeros(int(clusters.members.max()) + 1, np.uint64)
    np.add.at(sums, clusters.members, keys)  # modulo 2 ** 64: the order of the images is no matter
    rank = np.empty(len(sums), np.int64)
    rank[np.argsort(sums, kind="stable")] = np.arange(len(sums))
    return rank[clusters.members]


def _middle(values: NDArray[np.float64]) -> Interval | None:
    known = values[np.isfinite(values)]
    if len(known) < len(values) / 2:
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
