"""What users script against: names that are added on purpose, and never renamed or removed."""

from dataclasses import fields

import pytest
from commands import CONFIGS

from deepfake_ray import errors, schema

EVERY_JOB = """
    output limit seed use_gpu precision max_image_bytes max_image_pixels shared_storage resume verbose json
"""
FLAGS = {
    "train": """
        data labels group_regex split_by arch weights recipe epochs num_workers learning_rate lr_backbone
        freeze_backbone_epochs weight_decay label_smoothing class_weights warmup_share global_batch_size
        micro_batch_size image_size leaks allow_leaks reencode early_stopping_patience checkpoint_every_steps
        max_failures leave_one_source_out mlflow_uri max_error_share
    """,
    "score": """
        model num_workers batch_size crops skip_known threshold max_error_share compile profile image_timeout_s
        images include exclude
    """,
    "evaluate": """
        data labels group_regex split_by model num_workers batch_size crops skip_known threshold max_error_share
        compile profile image_timeout_s split predictions degrade compare
    """,
    "quantize": """
        data labels group_regex split_by model calibration_images
    """,
}

QUICKSTART = "output seed verbose json"

PREDICTIONS = """
    row:int64 uri:string sha256:string num_bytes:int64 format:string width:int32 height:int32 jpeg_quality:int32
    status:string error_code:string error_message:string logit:float p_fake:float predicted_label:string
    threshold:double model_id:string run_id:string scored_at:timestamp true_label:string split:string
    source:string group:string threshold_logit:float
"""


@pytest.mark.parametrize("job", FLAGS)
def test_flags(job):
    assert {field.name for field in fields(CONFIGS[job])} == {*EVERY_JOB.split(), *FLAGS[job].split()}


def test_flags_of_the_quickstart():
    assert {field.name for field in fields(CONFIGS["quickstart"])} == set(QUICKSTART.split())


def test_columns_of_predictions():
    """In their order: new ones are appended."""
    found = [f"{field.name}:{str(field.type).partition('[')[0]}" for field in schema.PREDICTIONS]
    assert found == PREDICTIONS.split()


def test_error_codes():
    assert {str(code) for code in errors.ErrorCode} == {
        "not_found", "forbidden", "timeout", "storage_error", "empty", "too_large", "not_an_image",
        "unsupported_format", "truncated", "decode_failed", "decoder_crashed",
    }  # fmt: skip
