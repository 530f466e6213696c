"""What degradations do to verdicts, with scores made up so that the answers are known."""

import pyarrow as pa
import pytest

from deepfake_ray.evaluation import robustness
from deepfake_ray.models.scores import threshold_at

FAKE, REAL = "fake", "real"


def rows(p_fake, labels, first=0, **more):
    import numpy as np

    logits = np.log(np.array(p_fake) / (1 - np.array(p_fake)))
    number = len(p_fake)
    columns = {"row": range(first, first + number), "logit": logits, "true_label": labels}
    return pa.table({**columns, "group": pa.nulls(number, pa.string()), **more})


def test_flips_are_counted_image_by_image():
    clean = rows([0.1, 0.2, 0.8, 0.9, 0.95], [REAL, REAL, FAKE, FAKE, FAKE])
    # After JPEG 50 one real is accused, and one fake passes. Row 4 could not be scored again.
    jpeg = rows([0.6, 0.2, 0.3, 0.9], [REAL, REAL, FAKE, FAKE], degradation=["jpeg_50"] * 4)
    first, second = robustness.figures_by_degradation(clean, jpeg, threshold_at(0.5, 1.0))
    assert (first["name"], first["num_images"], first["flipped"], first["roc_auc"]) == ("as_it_is", 4, 0.0, 1.0)
    assert (second["name"], second["num_images"], second["flipped"]) == ("jpeg_50", 4, 0.5)
    assert (second["flipped_to_fake"], second["flipped_to_real"]) == (0.25, 0.25)
    assert (second["accuracy"], second["recall_real"], second["recall_fake"]) == (0.5, 0.5, 0.5)
    # Of the four pairs (.6 .2) x (.3 .9), the fake is higher in .3 > .2, .9 > .6 and .9 > .2.
    assert second["roc_auc"] == pytest.approx(0.75)
    low, high = second["flipped_interval"]
    assert (low, high) == pytest.approx((0.15004, 0.84996), abs=1e-4)  # Wilson's of 2 in 4


def test_both_classes_are_drawn_alike_as_far_as_they_go():
    table = rows([0.5] * 1000, [FAKE] * 900 + [REAL] * 100)
    assert robustness.draw(table, 100, 0)["true_label"].to_pylist().count(REAL) == 50
    drawn = robustness.draw(table, 400, 0)
    assert (len(drawn), drawn["true_label"].to_pylist().count(REAL)) == (400, 100)
    assert len(robustness.draw(table, 5000, 0)) == 1000
    assert drawn.equals(robustness.draw(table, 400, 0))
    assert not drawn.equals(robustness.draw(table, 400, 1))
