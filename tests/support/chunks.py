"""Small chunks of a manifest, and a scorer for them."""

import os

import numpy as np
import pyarrow.parquet as pq
import simplejpeg

from deepfake_ray.data import manifest
from deepfake_ray.images.decode import Limits
from deepfake_ray.models.scores import threshold_at
from deepfake_ray.scoring.spec import ScorerSpec, chunk_file


def jpeg(seed):
    return simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def scorer_spec(model, folder, **options):
    return ScorerSpec(
        **{
            "model": model, "chunks": str(folder / "chunks"), "threshold": threshold_at(0.5, 1.0), "batch_size": 4,
            "num_crops": 1, "precision": "fp32", "limits": Limits(max_bytes=10**7, max_pixels=10**8),
            "image_timeout_s": 2.0, "max_error_share": 0.5, "device": "cpu", "run_id": "test", **options,
        }
    )  # fmt: skip


def listed(folder, files):
    """Write the files and a manifest of them; its chunks."""
    (folder / "images").mkdir()
    for name, data in files.items():
        (folder / "images" / name).write_bytes(data)
    manifest.write(manifest.list_images(str(folder / "images")), str(folder / "manifest"))
    return manifest.chunks(str(folder / "manifest"), rows_per_chunk=5)


def rows_of(spec, chunks):
    found = {}
    for chunk in chunks:
        for row in pq.read_table(chunk_file(spec.chunks, chunk.index)).to_pylist():
            found[os.path.basename(row["uri"])] = row
    return found
