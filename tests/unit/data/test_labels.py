"""What folders are taken for: invariants over names, and the layouts of data sets that people have."""

import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelled import images_in, make

from deepfake_ray.config import EvaluateConfig, TrainConfig
from deepfake_ray.data import folder_names, labels, manifest
from deepfake_ray.errors import UserError

CLASSES = {
    "real": ["real", "0_real", "0-real", "authentic", "original", "nature", "real "],
    "fake": ["fake", "1_fake", "ai", "synthetic", "generated", " Fake"],
}
SPLITS = {
    "train": ["train", "training", "train_set", "Train-Data", "trainset", "training images", "train2017", "data_train"],
    "validation": ["valid", "validation", "val", "dev", "val_set", "Dev-Set", "valset", "val2014"],
    "test": ["test", "testing", "eval", "evaluation", "Test-Data", "test set", "testset", "test_01", "TestImages"],
}
ODD = ["holdout", "hold-out", "fold_1", "folds", "trainval", "train_val", "progan_train", "CNN_synth_testset", "tests"]
ODD += ["dfdc_train_part_0", "testA", "public test", "split_1", "cross-validation", "k_fold", "training_fake"]
NOISE = ["stable-diffusion-v1-4", "latest", "contest", "developer", "evaluate_me_not", "unfolded", "trains", "airplane"]
NOISE += ["imagenet_ai_0419_sdv4", "real_vs_fake", "threshold_output", "images", "2024", "ü", "attestation", "interval"]
NEARLY = {"real": ["reals", "Real Images", "original_photos"], "fake": ["fakes", "Fake_faces", "AI-generated"]}

KINDS = {
    **{("label", label): names for label, names in CLASSES.items()},
    **{("split", split): names for split, names in SPLITS.items()},
    **{("nearly", label): names for label, names in NEARLY.items()},
    ("odd", ""): ODD,
    ("noise", ""): NOISE,
}
component = st.sampled_from([(kind, meaning, name) for (kind, meaning), names in KINDS.items() for name in names])
case = st.sampled_from([str, str.upper, str.lower])


def in_case(name, change):
    """Capital letters may separate words, so that some names mean something in their own case alone."""
    return name if any(letter.isupper() for letter in name) else change(name)


@given(st.lists(st.tuples(component, case), max_size=6))
def test_names_mean_one_thing_or_are_refused(parts):
    """Any depth and order: the one class and the one split that are named, or a reason why not; never a split word in
    the source (`training` and `testing` were, and the test set was trained on: huggingface/datasets 4839).
    """
    parts = [(kind, meaning, in_case(name, change)) for (kind, meaning, name), change in parts]
    found = folder_names.read("/".join(name for _, _, name in parts))

    def meant(kind):
        return {meaning for of, meaning, _ in parts if of == kind}

    classes = meant("label")
    odd = bool(meant("odd")) or len(meant("split")) > 1
    assert bool(found.odd_split) == odd
    assert bool(found.odd_label) == (len(classes) > 1 or (len(classes) == 1 and bool(meant("nearly") - classes)))
    if not found.odd_split:
        assert {found.split} == (meant("split") or {None})
    if not found.odd_label:
        assert {found.label} == (classes or {None})
    assert (found.source or "").split("/") == [name for kind, _, name in parts if kind not in ("label", "split")] or (
        found.source is None and all(kind in ("label", "split") for kind, _, _ in parts)
    )


def read(folder, **options):
    return labels.read_labelled(folder, **options).table.to_pylist()


@pytest.mark.parametrize(
    "order",
    ["SOURCE/SPLIT/CLASS", "SPLIT/SOURCE/CLASS", "SPLIT/CLASS/SOURCE", "CLASS/SPLIT/SOURCE", "SOURCE/CLASS/SPLIT"],
)
def test_folders_may_come_in_any_order(tmp_path, order):
    names = {
        order.replace("SOURCE", source).replace("SPLIT", split).replace("CLASS", of): (of, split, source)
        for source in ("sdv4", "biggan")
        for split in ("Training", "val", "Test-Set")
        for of in ("nature", "ai")
    }
    rows = read(make(tmp_path, *images_in(*names, number=2)))
    assert len(rows) == 24
    for row in rows:
        of, split, source = names[os.path.relpath(os.path.dirname(row["uri"]), tmp_path)]
        assert row["label"] == {"nature": "real", "ai": "fake"}[of]
        assert row["split"] == {"Training": "train", "val": "validation", "Test-Set": "test"}[split]
        assert row["source"] == source


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train/REAL", "train/FAKE"], ["test/REAL", "test/FAKE"]),  # CIFAKE
        (["training/real", "training/fake"], ["testing/real", "testing/fake"]),  # Hugging Face's other names
        (["imagenet_ai_0419_sdv4/train/ai", "imagenet_ai_0419_sdv4/train/nature"],
         ["imagenet_ai_0419_sdv4/test/ai", "imagenet_ai_0419_sdv4/test/nature"]),  # GenImage
        (["train/progan/train/0_real", "train/progan/train/1_fake"],
         ["test/progan/0_real", "test/progan/1_fake"]),  # ForenSynths: its train is a class of ImageNet's, too
        (["real_vs_fake/real-vs-fake/train/real", "real_vs_fake/real-vs-fake/train/fake"],
         ["real_vs_fake/real-vs-fake/test/real", "real_vs_fake/real-vs-fake/test/fake"]),  # 140k faces
        (["TrainData/Real", "TrainData/Fake"], ["EvaluationData/Real", "EvaluationData/Fake"]),
    ],
)  # fmt: skip
def test_a_test_set_is_never_trained_on(tmp_path, train, test):
    rows = read(make(tmp_path, *images_in(*train, *test)))
    place_of = {row["uri"]: os.path.relpath(os.path.dirname(row["uri"]), tmp_path) for row in rows}
    assert {place_of[row["uri"]] for row in rows if row["split"] == "test"} == set(test)
    assert {place_of[row["uri"]] for row in rows if row["split"] != "test"} == set(train)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["real", "fake", "holdout/real", "holdout/fake"], "which split .*'holdout' is no split that is known"),
        (["fold_1/real", "fold_2/fake"], r"'fold_1' is no split .* in fold_1/real \(20 images\).*'fold_2'"),
        (["progan_train/0_real", "progan_val/1_fake"], "'progan_train' is no split"),  # ForenSynths as it is unpacked
        (["training_real", "training_fake"], "'training_fake' is no split"),  # CIPLab
        (["Real", "Fake/test_videos"], "'test_videos' is no split"),  # DFDC
        (["trainA/real", "testB/fake"], "'trainA' is no split"),
        (["train/val/Real", "train/Fake"], r"'train' \(train\) and 'val' \(validation\) contradict each other"),
        (["test/progan/train/0_real", "test/progan/cat/1_fake"], r"'test' \(test\) and 'train' \(train\) contra"),
        (["Original/Fake", "Original/Real"], r"which class .*'Original' \(real\) and 'Fake' \(fake\) contradict"),
        (["AI/Real", "AI/Fake"], r"'AI' \(fake\) and 'Real' \(real\) contradict"),
        (["Real/fakes", "Fake"], r"'Real' \(real\) and 'fakes' \(fake\) contradict"),
        (["original_sequences/youtube", "manipulated_sequences/Deepfakes"], "must lie in a class folder"),
        (["real", "fake", "train/real", "train/fake"], "Either each image lies under a split folder or none does"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        read(make(tmp_path, *images_in(*names)))


def test_a_data_set_whose_own_name_speaks_of_a_split_is_read_when_it_is_named_itself(tmp_path):
    """CNNDetection's CNN_synth_testset/biggan/0_real: what the message says to do is done."""
    folder = make(tmp_path, *images_in("CNN/CNN_synth_testset/biggan/0_real", "CNN/CNN_synth_testset/biggan/1_fake"))
    with pytest.raises(UserError, match="is no split that is known") as caught:
        read(folder)
    place = re.search(r"give --data (\S+) alone", str(caught.value))[1]
    assert place == f"{folder}/CNN/CNN_synth_testset"
    assert {row["source"] for row in read(place)} == {"biggan"}


def test_contradicting_splits_are_not_settled_by_another_root(tmp_path):
    with pytest.raises(UserError, match="contradict each other") as caught:
        read(make(tmp_path, *images_in("train/val/Real", "train/val/Fake")))
    assert "--data" not in str(caught.value)


def test_a_table_settles_what_folders_leave_open(tmp_path):
    folder = make(tmp_path / "d", *images_in("fold_1/real", "fold_2/Original/Fake"))
    uris = [f"{folder}/{name}" for name in images_in("fold_1/real", "fold_2/Original/Fake")]
    split = ["train", "val", "test", "train"] * 10
    pq.write_table(pa.table({"uri": uris, "split": split}), tmp_path / "splits.parquet")
    with pytest.raises(UserError, match="which class"):
        read(folder, labels=str(tmp_path / "splits.parquet"))
    table = pa.table({"uri": uris, "split": split, "label": ["real"] * 20 + ["fake"] * 20})
    pq.write_table(table, tmp_path / "both.parquet")
    rows = {row["uri"]: (row["label"], row["split"]) for row in read(folder, labels=str(tmp_path / "both.parquet"))}
    spelled = {"train": "train", "val": "validation", "test": "test"}
    assert rows == {u: (of, spelled[s]) for u, of, s in zip(uris, table["label"].to_pylist(), split, strict=True)}


def test_labels_that_name_no_image_are_counted(tmp_path, capsys):
    """A misspelled row would leave an image its folder's label without a word."""
    folder = make(tmp_path / "d", *images_in("train/real", "train/fake", "val/real", "val/fake", number=2))
    (tmp_path / "l.csv").write_text("uri,label\nd/train/real/0.png,fake\nd/train/rael/1.png,fake\n")
    config = TrainConfig(data=folder, labels=str(tmp_path / "l.csv"), output="o")
    assert manifest.count(labels.load_labelled(config).table)["train"] == {"real": 1, "fake": 3}
    said = capsys.readouterr().err
    assert f"1 of 2 rows of --labels name no image of the data, such as {tmp_path}/d/train/rael/1.png" in said


def test_what_was_taken_for_what_is_said_once(tmp_path, capsys):
    folder = make(
        tmp_path, *images_in("training/nature", "training/ai/sdv4", "testing/nature", "testing/ai/midjourney")
    )
    labels.load_labelled(TrainConfig(data=folder, output="o"))
    said = capsys.readouterr().err
    assert said.count("folders: ") == 1
    assert "split testing = test, training = train; class ai = fake, nature = real; source midjourney, sdv4" in said


def test_neither_other_files_nor_the_root_move_an_image(tmp_path):
    """The split of an image depends on its place below the data alone."""
    first = make(tmp_path / "test-data v2", *images_in("Real", "Fake", number=40))
    second = make(tmp_path / "b", *images_in("Real", "Fake", number=60), "Real/x.txt")
    of = {row["uri"].removeprefix(first): row["split"] for row in read(first)}
    again = {row["uri"].removeprefix(second): row["split"] for row in read(second)}
    assert of == {name: again[name] for name in of}


def test_small_sets_without_splits_can_be_evaluated(tmp_path):
    """Made splits that nothing will use need not have both classes."""
    folder = make(tmp_path, "Real/a.png", "Fake/b.png")
    assert len(labels.load_labelled(EvaluateConfig(data=folder, model="m", output="o")).table) == 2
    with pytest.raises(UserError, match="Each split must have both classes"):
        labels.load_labelled(TrainConfig(data=folder, output="o"))


def test_an_inventorys_bucket_is_no_folder(tmp_path, monkeypatch):
    keys = ["in/Real/a.png", "in/sdv4/Fake/b.png", "in/Real/c.png", "in/sdv4/Fake/d.png"] * 10
    rows = [f"s3://my-train-bucket/{i}/{key}" for i, key in enumerate(keys)]
    table = pa.table({"uri": rows})

    def listed(place, **_):
        from deepfake_ray.data.tables import manifest_rows

        return manifest.Manifest(manifest.numbered(manifest_rows({"uri": table["uri"]}, len(table))))

    monkeypatch.setattr(labels, "list_images", listed)
    found = read(str(tmp_path / "manifest.json"))
    assert {row["source"] for row in found if row["label"] == "fake"} == {f"{i}/in/sdv4" for i in range(1, 40, 2)}
    assert {row["split"] for row in found} == {"train", "validation", "test"}
