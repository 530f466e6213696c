import json

import numpy as np
import pyarrow as pa
import pytest
from labelled import facts

from deepfake_ray import schema
from deepfake_ray.config import TrainConfig
from deepfake_ray.data import manifest
from deepfake_ray.data.audit import audit_manifest, duplicates, find_leaking_images, zero_pixel_auc
from deepfake_ray.data.labels import Labelled
from deepfake_ray.drivers import training_data
from deepfake_ray.errors import UserError


def table(rows):
    names = ("label", "split", "source", "group")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    empty = {f.name: [None] * len(rows) for f in schema.MANIFEST if f.name not in names}
    empty |= {"row": list(range(len(rows))), "uri": [str(i) for i in range(len(rows))]}
    return pa.table({**empty, **columns}).select(schema.MANIFEST.names).cast(schema.MANIFEST)


def test_groups_in_two_splits_are_named():
    found = audit_manifest(
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
    found = audit_manifest(table(rows))
    assert found["num_images"] == {"train": {"real": 2, "fake": 9}}
    assert "train is unbalanced (2 real, 9 fake)" in found["warnings"][0]
    assert audit_manifest(table(rows[:9]))["warnings"] == []


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


def leaks():
    """Rows, and their files: a to z name bytes, a dot no image."""
    rows = [
        ("real", "train", "a"), ("real", "test", "a"),  # in test
        ("real", "train", "b"), ("real", "validation", "b"),  # in validation
        ("fake", "validation", "c"), ("fake", "test", "c"), ("fake", "train", "c"),  # in all
        ("real", "train", "d"), ("real", "train", "d"),  # twice in one split: no leak
        ("real", "test", "e"), ("fake", "test", "e"),  # in both classes
        ("real", "train", "f"), ("fake", "test", "f"), ("fake", "validation", "f"),  # both classes, several splits
        ("real", "train", "."), ("fake", "test", "."),
        *[(of, split, f"{of}{split}{i}") for of in ("real", "fake") for split in schema.SPLITS for i in range(2)],
    ]  # fmt: skip
    found = table([(of, split, None, None) for of, split, _ in rows])
    images = [{"sha256": name, "format": None if name == "." else "png", "num_bytes": 7} for *_, name in rows]
    return found, facts(images), rows


def test_leaks_are_left_out_where_they_hurt():
    """What is judged by stays as it is, and is not trained on; of an image in both classes no label is right."""
    rows, files, _ = leaks()
    found = {
        one["uri"]: (one["split"], one["label"], one["reason"], one["kept_uri"])
        for one in find_leaking_images(rows, files)
    }
    assert found == {
        "0": ("train", "real", "in test, too", "1"),
        "2": ("train", "real", "in validation, too", "3"),
        "4": ("validation", "fake", "in test, too", "5"),
        "6": ("train", "fake", "in test, too", "5"),
        "9": ("test", "real", "in both classes", None),
        "10": ("test", "fake", "in both classes", None),
        "11": ("train", "real", "in both classes", None),
        "12": ("test", "fake", "in both classes", None),
        "13": ("validation", "fake", "in both classes", None),
    }
    kept = pa.array([uri not in found for uri in rows["uri"].to_pylist()])
    left = duplicates(rows.filter(kept), files.filter(kept))
    assert (left["num_across_splits"], left["num_across_classes"]) == (0, 0)
    assert find_leaking_images(rows.filter(kept), files.filter(kept)) == []


def configured(**options):
    return TrainConfig(data="d", output="o", **options)


def test_leaks_are_an_error_that_names_the_remedy():
    rows, files, _ = leaks()
    message = "4 images are in two splits and 2 in two classes.*0 and 1; .*--leaks drop.*--allow-leaks"
    with pytest.raises(UserError, match=message):
        training_data.look_at_files(Labelled(rows), files, configured())


def test_what_is_left_after_dropping_is_what_is_trained_on(capsys):
    rows, files, _ = leaks()
    images, left, findings = training_data.look_at_files(Labelled(rows), files, configured(leaks="drop"))
    assert len(images.table) == len(left) == len(rows) - 9
    assert images.table["row"].to_pylist() == list(range(len(images.table)))
    assert findings["num_images"] == manifest.count(images.table)
    assert findings["num_images"]["validation"] == {"real": 3, "fake": 2}
    assert [one["uri"] for one in findings["dropped"]] == ["0", "2", "4", "6", "9", "10", "11", "12", "13"]
    seen = training_data.seen_in_training(images.table, left)
    assert set(seen["uri"].to_pylist()).isdisjoint(one["uri"] for one in findings["dropped"])
    assert set(seen["num_bytes"].to_pylist()) == {7}
    said = capsys.readouterr().err
    assert "leaves out 9 of 28 files" in said
    assert "validation 3 real + 2 fake" in said
    # A resumed run lists anew, and drops what was dropped.
    again, counted = training_data.restore_images(Labelled(rows), json.loads(json.dumps(findings)))
    assert again.sha256 == images.sha256
    assert counted["num_images"] == findings["num_images"]


def test_allowed_leaks_are_warned_of():
    rows, files, _ = leaks()
    for options in ({"leaks": "allow"}, {"allow_leaks": True}):
        images, left, findings = training_data.look_at_files(Labelled(rows), files, configured(**options))
        assert (images.table, left) == (rows, files)
        assert findings["dropped"] == []
        assert "figures on them flatter the model" in " ".join(findings["warnings"])
    assert configured(allow_leaks=True).leaks == "allow"
    assert TrainConfig.completed({"allow_leaks": True})["leaks"] == "allow"  # of a version without leaks
    assert TrainConfig.completed({"allow_leaks": False})["leaks"] == "error"
    with pytest.raises(UserError, match="must agree"):
        configured(allow_leaks=True, leaks="drop")


def test_a_class_that_was_dropped_whole_is_missed():
    rows = table([(of, split, None, None) for split in schema.SPLITS for of in schema.CLASSES])
    files = facts([{"sha256": name, "format": "png"} for name in "abcded"])  # validation's fake is test's fake
    with pytest.raises(UserError, match="1 files .* copies from test.*both classes in validation: it has 1 real and 0"):
        training_data.look_at_files(Labelled(rows), files, configured(leaks="drop"))


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


def test_the_size_of_images_is_the_median_of_those_that_are_readable():
    rows = table([("real", "train", None, None)] * 4 + [("fake", "validation", None, None)])
    sizes = [{"width": w, "height": h} for w, h in ((40, 300), (90, 50), (None, None), (60, 61), (9, 9))]
    assert training_data.median_short_side(rows, facts(sizes)) == 50
    with pytest.raises(UserError, match="must be readable: none of 4 that were looked at is"):
        training_data.median_short_side(rows, facts([{}] * 5))


def test_images_that_were_given_up_stay_so_on_resume():
    rows = table([("real", "train", None, None), ("fake", "train", None, None)] * 2)
    files = facts([{}, {"given_up": "timeout: took longer than 60 s"}, {}, {}])
    _, _, findings = training_data.look_at_files(Labelled(rows), files, configured())
    uri = rows["uri"][1].as_py()
    assert findings["given_up"] == {uri: "timeout: took longer than 60 s"}
    assert f"1 images are not decoded again and count as unreadable: {uri}" in findings["warnings"][-1]
    assert training_data.restore_images(Labelled(rows), findings)[1]["given_up"] == findings["given_up"]
    assert training_data.restore_images(Labelled(rows), {})[1]["given_up"] == {}  # audit.json of an earlier version
