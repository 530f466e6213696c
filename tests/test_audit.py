import numpy as np
import pyarrow as pa
import pytest

from deepfake_ray import schema
from deepfake_ray.audit import duplicates, of_manifest, zero_pixel_auc


def table(rows):
    names = ("label", "split", "source", "group")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    empty = {f.name: [None] * len(rows) for f in schema.MANIFEST if f.name not in names}
    empty |= {"row": list(range(len(rows))), "uri": [str(i) for i in range(len(rows))]}
    return pa.table({**empty, **columns}).select(schema.MANIFEST.names).cast(schema.MANIFEST)


def test_groups_in_two_splits_are_named():
    found = of_manifest(
        table(
            [
                ("real", "train", None, "anna"),
                ("fake", "train", "gan", "anna"),
                ("real", "test", None, "anna"),
                ("fake", "test", "gan", "bert"),
            ]
        )
    )
    assert found["groups_in_several_splits"] == ["anna"]
    assert found["num_images_by_source"] == {"gan": {"real": 0, "fake": 2}}
    assert len(found["warnings"]) == 1
    assert "anna" in found["warnings"][0]


def test_imbalance_is_warned_of():
    rows = [("real", "train", None, None)] * 2 + [("fake", "train", None, None)] * 9
    found = of_manifest(table(rows))
    assert found["num_images"] == {"train": {"real": 2, "fake": 9}}
    assert "train is unbalanced (2 real, 9 fake)" in found["warnings"][0]
    assert of_manifest(table(rows[:9]))["warnings"] == []


def facts(rows):
    names = schema.FACTS.names
    return pa.table({name: [row.get(name) for row in rows] for name in names}, schema=schema.FACTS)


def test_duplicates_across_splits_and_classes_are_named():
    rows = table(
        [
            ("real", "train", None, None),  # 0: also in test
            ("real", "train", None, None),  # 1: twice in the same place: no leak
            ("real", "train", None, None),  # 2
            ("fake", "train", None, None),  # 3: also called real
            ("real", "train", None, None),  # 4
            ("real", "test", None, None),  # 5
            ("fake", "test", None, None),  # 6: unreadable, as is the next
            ("fake", "train", None, None),  # 7
            ("fake", "test", None, None),  # 8: no image, as is the next: both are empty, say
            ("real", "train", None, None),  # 9
        ]
    )
    images = [{"sha256": s, "format": "png"} for s in ("a", "b", "b", "c", "c", "a")]
    found = duplicates(rows, facts([*images, {}, {}, {"sha256": "e"}, {"sha256": "e"}]))
    assert found == {"num_across_splits": 1, "num_across_classes": 1, "examples": [["0", "5"], ["3", "4"]]}


def shortcut(of_real, of_fake, number=200):
    rng = np.random.default_rng(0)
    labels = ["real", "fake"] * number
    rows = []
    for label in labels:
        common = {"sha256": "x", "num_bytes": int(rng.normal(20_000, 3_000)), "format": "jpeg", "width": 64,
                  "height": 64, "jpeg_quality": 90}  # fmt: skip
        rows.append(common | (of_real(rng) if label == "real" else of_fake(rng)))
    return zero_pixel_auc(table([(label, "train", None, None) for label in labels]), facts(rows))


def test_files_that_tell_nothing_have_an_auc_of_chance():
    assert shortcut(lambda _: {}, lambda _: {}) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("of_fake", "least"),
    [
        (lambda _: {"jpeg_quality": 75}, 0.99),
        (lambda _: {"format": "png", "jpeg_quality": None}, 0.99),
        (lambda _: {"width": 1024, "height": 1024}, 0.99),
        (lambda rng: {"num_bytes": int(rng.normal(25_000, 3_000))}, 0.85),  # 1.67 deviations: .88
    ],
)
def test_files_that_give_the_class_away_are_found(of_fake, least):
    assert shortcut(lambda _: {}, of_fake) >= least


def test_too_few_files_mean_nothing():
    assert shortcut(lambda _: {}, lambda _: {"format": "png"}, number=20) is None
