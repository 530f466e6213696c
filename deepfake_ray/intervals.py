"""How sure a figure is: 95 % intervals. Knows neither Ray nor torch."""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

LEVEL = 0.95
RESAMPLES = 1000
MAX_DRAWS = 50_000_000
"""Resamples times images: large sets have fewer resamples, and narrow intervals, whose ends matter less."""
MIN_RESAMPLES = 200

Interval = tuple[float, float]
Key = TypeVar("Key", bound=Hashable)


def wilson(successes: int, trials: int) -> Interval | None:
    """Wilson's score interval of a proportion (Wilson 1927); None of no trials."""
    if not trials:
        return None
    found = binomtest(int(successes), int(trials)).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def bootstrap(
    figures: Callable[[NDArray[np.float64]], Mapping[Key, float]],
    num_images: int,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> dict[Key, Interval | None]:
    """Percentile intervals of figures over resamples of the images (Efron 1979), or of whole groups of them.

    Images of one video or person are not independent: counting them as such makes intervals too narrow.

    Args:
        figures: weights (N,), how often an image was drawn -> figures; NaN where a resample has none.
        num_images: N.
        groups: (N,) of any hashable values, or None: each image for itself.
        seed: of the resamples.

    Returns:
        An interval for each figure; None for one that most resamples do not have.
    """
    members = np.arange(num_images) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    num_groups = int(members.max()) + 1
    resamples = int(np.clip(MAX_DRAWS // num_images, MIN_RESAMPLES, RESAMPLES))
    random = np.random.default_rng(seed)
    drawn: list[Mapping[Key, float]] = []
    for _ in range(resamples):
        counts = np.bincount(random.integers(num_groups, size=num_groups), minlength=num_groups)
        drawn.append(figures(counts[members].astype(np.float64)))
    return {name: _middle(np.array([one[name] for one in drawn])) for name in drawn[0]}


def _middle(values: NDArray[np.float64]) -> Interval | None:
    known = values[np.isfinite(values)]
    if len(known) < len(values) / 2:
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
