"""`quantize(config)`: a bundle -> one that computes in 8-bit integers, with thresholds of its own. The driver."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from deepfake_ray import schema
from deepfake_ray.cluster.session import check_places
from deepfake_ray.config import QuantizeConfig
from deepfake_ray.console import say, show
from deepfake_ray.data import leakage
from deepfake_ray.data.labels import load_labelled, select_split
from deepfake_ray.drivers import summaries
from deepfake_ray.drivers.resuming import asked_settings, require_quantised_of
from deepfake_ray.drivers.tuning import save_tuned
from deepfake_ray.errors import JobError, UserError
from deepfake_ray.evaluation.wording import number
from deepfake_ray.images.decode import Limits
from deepfake_ray.images.loading import Loader
from deepfake_ray.models import bundle
from deepfake_ray.models.spec import Scales, Spec
from deepfake_ray.storage import files, outputs
from deepfake_ray.storage.output_lock import OutputLock, hold_output

BATCH_SIZE = 16


def quantize(config: QuantizeConfig) -> Spec:
    """Quantise as configured and write OUTPUT/model; returns its spec.

    The scales of the activations are those of some training images; temperature and thresholds are chosen anew, on the
    validation split, as in training.

    Raises:
        UserError: see the messages.
        JobError: no image could be read.
    """
    output = files.absolute(config.output)
    place = files.join(output, "model")
    if config.resume and outputs.is_finished(output):
        finished = bundle.load_spec(place)
        require_quantised_of(config, output, finished)
        return finished
    with hold_output(output) as lock:
        return _quantize(config, output, place, lock)


def _quantize(config: QuantizeConfig, output: str, place: str, lock: OutputLock) -> Spec:
    if not config.resume:
        outputs.require_new_output(output, resumable=True)
    spec, arrays = bundle.load(config.model)
    if spec.scales:
        raise UserError(f"model must be in floating point: {config.model} is quantised already; give the one before.")
    images = load_labelled(config)
    train, validation = (select_split(images, split, config.data) for split in (schema.TRAIN, schema.VALIDATION))
    check_places([config.model, config.data], output, shared_storage=config.shared_storage)
    scales = _scales(train.table["uri"], config)
    untuned = replace(
        spec,
        scales=scales,
        precision=schema.INT8,
        provenance={**spec.provenance, "quantised_from": spec.model_id, **asked_settings(config)},
    )
    quantised = save_tuned(
        untuned,
        arrays,
        place,
        validation,
        config,
        lock,
        draft=files.join(output, "draft"),
        use_gpu=False,
        prior=spec.prior,
    )
    trained = leakage.load(config.model)
    if trained is not None:
        leakage.save(place, trained)
    lock.mark_finished()
    before, after = spec.provenance.get("validation", {}), quantised.provenance["validation"]
    for name in ("roc_auc", "balanced_accuracy"):
        show(f"validation {name}: {number(after[name])}, before {number(before.get(name))}")
    show(f"  model  {place}")
    return quantised


def quantize_to_summary(config: QuantizeConfig) -> dict[str, Any]:
    """What jobs/quantize.py does: `quantize`, and its summary."""
    return summaries.summarise_bundle(quantize(config), files.absolute(config.output))


def _scales(train: pa.ChunkedArray, config: QuantizeConfig) -> Scales:
    drawn = np.random.default_rng(config.seed).permutation(len(train))[: config.calibration_images]
    uris = train.take(pa.array(np.sort(drawn))).to_pylist()
    limits = Limits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
    say(f"calibration on {len(uris):,} training images")
    calibrated = ray.remote(num_cpus=1)(_calibrated)
    scales: Scales | str = ray.get(calibrated.remote(files.absolute(config.model), uris, limits))
    if isinstance(scales, str):
        raise UserError(f"model must be one that can be quantised: {config.model}: {scales}; take another arch.")
    if not scales:
        raise JobError(f"none of {len(uris):,} training images can be read, such as {uris[0]}")
    return scales


def _calibrated(model: str, uris: list[str], limits: Limits) -> Scales | str:
    """Runs on a worker; a string says why the model cannot be quantised."""
    import torch

    from deepfake_ray.models.inference import evaluated
    from deepfake_ray.models.int8 import calibrate

    spec, detector = evaluated(model)
    loader = Loader(limits=limits, preparation=spec.preparation)
    pixels = [image.crops[0] for image in loader.load_all(uris) if image.error is None]

    def batches() -> Iterator[torch.Tensor]:
        for start in range(0, len(pixels), BATCH_SIZE):
            batch: NDArray[np.uint8] = np.stack(pixels[start : start + BATCH_SIZE])
            yield detector.normalized(torch.from_numpy(batch))

    if not pixels:
        return {}
    try:
        return calibrate(detector.network, batches())
    except ValueError as error:
        return str(error)
