"""Distributed detection of deepfake images on Ray: train, score, evaluate.

From Python: `Detector` scores a few images in this process; `train`, `score` and `evaluate` are the jobs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepfake_ray.api import Detector as Detector
    from deepfake_ray.api import evaluate as evaluate
    from deepfake_ray.api import score as score
    from deepfake_ray.api import train as train

__version__ = "0.1.0"
__all__ = ["Detector", "__version__", "evaluate", "score", "train"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only now: the package itself is imported by everything, at once."""
    if name in __all__:
        from deepfake_ray import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
