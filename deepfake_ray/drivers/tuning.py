"""Temperature and thresholds of a new bundle, chosen on its own scores of the validation split. Driver's code.

The scores are those of `score.score_manifest`, not of the training loop, whose forward pass has other batches and
unfolded batch norms: what is promised of a threshold is promised of the logits that scoring writes.
"""

from collections.abc import Mapping
from dataclasses import replace

import pyarrow.compute as pc

from deepfake_ray import schema
from deepfake_ray.config import QuantizeConfig, ScoringOptions, TrainConfig
from deepfake_ray.console import say
from deepfake_ray.data import manifest
from deepfake_ray.data.predictions import read_predictions
from deepfake_ray.drivers.score import score_manifest
from deepfake_ray.evaluation import calibration, summary
from deepfake_ray.models import bundle
from deepfake_ray.models.scores import threshold_at
from deepfake_ray.models.spec import Spec
from deepfake_ray.storage import files
from deepfake_ray.storage.output_lock import OutputLock

FEW_IMAGES = 2_000
"""Up to so many, one actor scores them: starting others would take longer than they save."""


def save_tuned(
    untuned: Spec,
    arrays: bundle.Arrays,
    place: str,
    validation: manifest.Manifest,
    config: TrainConfig | QuantizeConfig,
    lock: OutputLock,
    *,
    draft: str,
    use_gpu: bool,
    prior: Mapping[str, float],
) -> Spec:
    """Write a bundle with the temperature and the thresholds that suit its scores; returns its spec.

    A run that is killed meanwhile leaves nothing that looks like a bundle but the draft, and begins anew.

    Args:
        untuned: with the precision to score in; its temperature and thresholds do not matter.
        arrays: the weights.
        place: where the bundle goes.
        validation: the rows of the validation split; those that cannot be read are left out.
        config: of the job.
        lock: of its output.
        draft: a directory to work in, which is removed.
        use_gpu: whether to score on GPUs.
        prior: class -> its share among the images that p_fake is to be for; empty: that of the validation split.

    Raises:
        JobError: no image could be scored.
    """
    files.delete_directory(draft)
    model = files.join(draft, "model")
    half = threshold_at(0.5, 1.0)
    bundle.save(model, replace(untuned, temperature=1.0, thresholds={"default": half}), arrays)
    scoring = ScoringOptions(
        model=model,
        output=files.join(draft, "scores"),
        threshold="default",
        num_workers=1 if len(validation.table) <= FEW_IMAGES else None,
        use_gpu="yes" if use_gpu else "no",
        precision="auto" if untuned.scales else untuned.precision,  # type: ignore[arg-type]
        max_error_share=1.0,
        seed=config.seed,
        max_image_bytes=config.max_image_bytes,
        max_image_pixels=config.max_image_pixels,
        shared_storage=config.shared_storage,
    )
    say(f"scoring {len(validation.table):,} validation images, to choose temperature and thresholds")
    score_manifest(scoring, [config.data], lambda: [manifest.Page(validation.table)], lock, stage="validation")
    rows = read_predictions(scoring.output, ["status", *summary.COLUMNS])
    labels, logits = summary.arrays(rows.filter(pc.equal(rows["status"], schema.OK)))
    tuned = calibration.tune(labels, logits, [prior[name] for name in schema.CLASSES] if prior else None)
    for warning in calibration.promises_not_kept(tuned.thresholds):
        say(f"warning: {warning}")
    spec = replace(
        untuned,
        temperature=tuned.temperature,
        thresholds=tuned.thresholds,
        prior=dict(prior),
        provenance={**untuned.provenance, "validation": tuned.figures},
    )
    saved = bundle.save(place, spec, arrays)
    files.delete_directory(draft)
    return saved
