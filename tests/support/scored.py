"""Scoring runs in this process, and what they wrote."""

import pyarrow.parquet as pq

from deepfake_ray.config import ScoreConfig


def score(**options):
    from deepfake_ray.drivers.score import score

    places = {"images": (str(options.pop("images")),)} | {key: str(options.pop(key)) for key in ("model", "output")}
    return score(ScoreConfig(**places, **options))


def read(output):
    return pq.read_table(f"{output}/predictions").sort_by("row")
