"""`deepfake-ray score` without `--output`: the scores of a few images, shown as a table, without Ray."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from deepfake_ray.config import Precision
from deepfake_ray.errors import JobError, UserError

MOST = 50


@dataclass(frozen=True, kw_only=True)
class FewImagesConfig:
    """Score up to 50 images, in this process, and print a table. With --output, any number into Parquet, decoded in
    processes that may crash: see deepfake-ray score --help.
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Images, folders or URIs."""
    model: str
    """The bundle: the directory or URI that training wrote as OUTPUT/model."""
    threshold: str = "balanced"
    """An image is called fake from this p_fake on: the name of one of the model's thresholds, or a number."""
    precision: Precision = "auto"
    """Arithmetic of the model. auto: bf16 where this machine computes so natively, else fp32."""
    json: bool = False
    """Print one JSON object instead, with a list `results` of the columns of predictions."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code: 0, 2 for the user's mistake, 1 where the model is broken."""
    config = tyro.cli(FewImagesConfig, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        rows = score_few(config)
    except (UserError, JobError) as error:
        word, code = ("error", 2) if isinstance(error, UserError) else ("failed", 1)
        if config.json:
            print(json.dumps({"error": str(error), "exit_code": code}))
        print(f"{word}: {error}", file=sys.stderr)
        return code
    print(json.dumps({"results": rows}, default=str) if config.json else table_of(rows))
    return 0


def score_few(config: FewImagesConfig) -> list[dict[str, Any]]:
    """The rows of predictions of the images, in the order in which they are listed.

    Raises:
        UserError: there are too many, or none; or what is named is not there.
    """
    from deepfake_ray.data import manifest
    from deepfake_ray.scoring.detector import Detector

    if not config.images or not all(config.images):
        raise UserError(f"Images must be named: got {list(config.images)!r}; give files, folders or URIs.")
    uris: list[str] = []
    for page in manifest.pages_of(config.images, limit=MOST + 1):
        uris += page.rows["uri"].to_pylist()
    if len(uris) > MOST:
        raise UserError(f"Without --output there may be {MOST} images: got more; add --output FOLDER.")
    return Detector(config.model, threshold=config.threshold, precision=config.precision)(uris)


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """A line per image: p_fake, the verdict, the URI; or what is wrong with it."""
    lines = ["p_fake  verdict  image"]
    for row in rows:
        if row["status"] == "ok":
            lines.append(f"{row['p_fake']:.4f}  {row['predicted_label']:7}  {row['uri']}")
        else:
            lines.append(f"     -  error    {row['uri']} ({row['error_code']}: {row['error_message']})")
    return "\n".join(lines)
