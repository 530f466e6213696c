"""Column names, class order, split names and Arrow schemas: the one place that spells them."""

import pyarrow as pa

REAL = 0
FAKE = 1
"""Class indices. Fake is the positive class everywhere."""
CLASSES = ("real", "fake")
"""Class names in index order."""

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)

REAL_NAMES = frozenset({"real", "0_real", "authentic", "original", "nature"})
FAKE_NAMES = frozenset({"fake", "1_fake", "ai", "synthetic", "generated"})
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("valid", "validation", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}
"""What folders and tables call them, in lower case."""

AUTO = "auto"
BF16, FP32, INT8 = PRECISIONS = ("bf16", "fp32", "int8")
"""What a model computes in."""

OK = "ok"
ERROR = "error"

SCHEMA_VERSION = "1"

MANIFEST = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("source", pa.string()),
        pa.field("group", pa.string()),
        pa.field("num_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
    ],
    metadata={"deepfake_ray.schema": f"manifest/{SCHEMA_VERSION}"},
)

PREDICTIONS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("num_bytes", pa.int64()),
        pa.field("format", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("jpeg_quality", pa.int32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("logit", pa.float32()),
        pa.field("p_fake", pa.float32()),
        pa.field("predicted_label", pa.string()),
        pa.field("threshold", pa.float64()),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("scored_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("true_label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("source", pa.string()),
        pa.field("group", pa.string()),
        pa.field("threshold_logit", pa.float32()),
    ],
    metadata={"deepfake_ray.schema": f"predictions/{SCHEMA_VERSION}"},
)

DEGRADED = PREDICTIONS.append(pa.field("degradation", pa.string(), nullable=False))
"""Predictions for images after each of some degradations."""

FACTS = pa.schema(
    [
        pa.field("sha256", pa.string()),
        pa.field("num_bytes", pa.int64()),
        pa.field("format", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("jpeg_quality", pa.int32()),
        pa.field("phash", pa.uint64()),
        pa.field("given_up", pa.string()),  # why: it is not to be decoded again
    ]
)
"""What the file of an image tells, and its perceptual hash; all null if it could not be read."""

METRICS = pa.schema(
    [
        pa.field("metric", pa.string(), nullable=False),
        pa.field("split", pa.string()),
        pa.field("source", pa.string()),
        pa.field("threshold_name", pa.string()),
        pa.field("threshold", pa.float64()),
        pa.field("value", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("num_images", pa.int64(), nullable=False),
    ],
    metadata={"deepfake_ray.schema": f"metrics/{SCHEMA_VERSION}"},
)
