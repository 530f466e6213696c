"""What a model is judged by in a place without split folders. A tenth of a held-out set was, 217 of 2,035 images."""

from hashlib import sha256

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from labelled import facts, images_in, make

from deepfake_ray.config import EvaluateConfig
from deepfake_ray.data import labels, leakage
from deepfake_ray.data.held_out import select_held_out
from deepfake_ray.drivers import training_data
from deepfake_ray.errors import UserError
from deepfake_ray.images import sample


def read(folder, **options):
    return labels.read_labelled(str(folder), use_made_splits=False, **options)


def hashes(uris):
    return pa.chunked_array([[sha256(open(uri, "rb").read()).hexdigest() for uri in uris.to_pylist()]])


def never(uris):
    raise AssertionError(f"{len(uris)} files are read")


def trained_on(images):
    """What a training on these images leaves in its bundle."""
    table = images.table
    columns = {"sha256": hashes(table["uri"]).to_pylist(), "num_bytes": table["num_bytes"].to_pylist()}
    rows = [
        {**dict(zip(columns, values, strict=True)), "format": "png"} for values in zip(*columns.values(), strict=True)
    ]
    return training_data.seen_in_training(table, facts(rows))


@pytest.fixture
def photos(tmp_path):
    return make(tmp_path / "photos", *images_in("Real", "Fake", number=150))


def uris_of(images, split=None):
    table = images.table if split is None else images.table.filter(pc.equal(images.table["split"], split))
    return set(table["uri"].to_pylist())


def test_a_place_that_the_model_never_saw_is_evaluated_whole(photos, tmp_path):
    other = read(make(tmp_path / "other", *images_in("real", "fake", number=30)))
    chosen, line = select_held_out(other, trained_on(read(photos)), {}, hashes)
    assert uris_of(chosen) == uris_of(other)
    assert chosen.table["split"].null_count == 60
    assert "evaluating all 60 images" in line
    assert "none of its images is among the" in line


def test_the_place_of_the_training_is_evaluated_on_its_test_split(photos):
    images = read(photos)
    trained = trained_on(images)
    chosen, line = select_held_out(images, trained, {}, never)
    assert uris_of(chosen) == uris_of(images, "test")
    assert uris_of(chosen).isdisjoint(trained["uri"].to_pylist())
    assert len(chosen.table) + len(trained) == 300
    assert f"evaluating {len(chosen.table)} of 300 images, the test split that training made" in line
    assert f"trained or tuned on {len(trained)} of its images" in line


def test_a_folder_that_grew_keeps_its_test_split(photos, tmp_path):
    trained = trained_on(read(photos))
    before = uris_of(read(photos), "test")
    make(tmp_path / "photos", *[f"{of}/new-{i}.png" for of in ("Real", "Fake") for i in range(150)])
    images = read(photos)
    chosen, _ = select_held_out(images, trained, {}, never)
    assert uris_of(chosen) == uris_of(images, "test")
    assert before < uris_of(chosen)
    assert uris_of(chosen).isdisjoint(trained["uri"].to_pylist())


@pytest.mark.parametrize("sizes_known", [True, False])
def test_a_copy_elsewhere_is_known_by_its_bytes(photos, tmp_path, sizes_known):
    """The same hash over the same places below the data; older bundles know no sizes."""
    trained = trained_on(read(photos))
    if not sizes_known:
        trained = trained.set_column(4, "num_bytes", pa.nulls(len(trained), pa.int64()))
    copy = read(make(tmp_path / "copy", *images_in("Real", "Fake", number=150)))
    chosen, _ = select_held_out(copy, trained, {}, hashes)
    assert {uri.replace("/copy/", "/photos/") for uri in uris_of(chosen)} == uris_of(read(photos), "test")


def test_only_files_of_a_known_size_are_read(photos, tmp_path):
    trained = trained_on(read(photos))
    unreadable = pa.table(
        {"uri": ["/gone"], "split": ["train"], "sha256": [None], "phash": [None], "num_bytes": [None]}
    )
    trained = pa.concat_tables([trained, unreadable.cast(trained.schema)])
    other = make(tmp_path / "other", *[f"{of}/quite-a-long-name-{i}.png" for of in ("Real", "Fake") for i in range(20)])
    chosen, _ = select_held_out(read(other), trained, {}, never)
    assert len(chosen.table) == 40
    make(tmp_path / "other", "Real/1.png")  # one training image among them
    chosen, _ = select_held_out(read(other), trained, {}, lambda uris: [len(uris) == 1 or never(uris), hashes(uris)][1])
    assert len(chosen.table) < 40


def test_the_groups_of_the_training_count(tmp_path):
    """Without them a new image of a person that was trained on would be tested on."""
    names = [f"{of}/person{i // 5}__{i}.png" for of in ("Real", "Fake") for i in range(500)]
    folder = make(tmp_path / "d", *names)
    regex = "^(.+?)__"
    trained = trained_on(read(folder, group_regex=regex))
    make(tmp_path / "d", *[f"{of}/person{i // 2}__new{i}.png" for of in ("Real", "Fake") for i in range(300)])
    chosen, line = select_held_out(read(folder), trained, {"config": {"group_regex": regex}}, never)
    assert "--group-regex" in line
    groups = {uri.rsplit("/", 1)[1].split("__")[0] for uri in trained["uri"].to_pylist()}
    assert set(chosen.table["group"].to_pylist()).isdisjoint(groups)
    assert any("__new" in uri for uri in uris_of(chosen))


@pytest.mark.parametrize("place", ["", "photos", "photos/a"])
@pytest.mark.parametrize("says_where", [True, False])
def test_the_test_split_is_the_same_above_and_below_the_training_data(tmp_path, place, says_where):
    """Other roots have other hashes: the training's counts, or at least nothing that it used is tested on."""
    make(tmp_path / "photos", *images_in("a/Real", "a/Fake", "b/Real", "b/Fake", number=150))
    images = read(tmp_path / "photos")
    trained = trained_on(images)
    given = read(tmp_path / place)
    provenance = {"data": {"place": str(tmp_path / "photos")}} if says_where else {}
    if says_where or place == "photos":
        chosen, _ = select_held_out(given, trained, provenance, never)
        assert uris_of(chosen) == uris_of(images, "test") & uris_of(given)
    else:
        try:
            chosen, _ = select_held_out(given, trained, provenance, never)
        except UserError:  # by chance there may be too few that both hashes would test on
            return
        assert uris_of(chosen).isdisjoint(trained["uri"].to_pylist())


def test_splits_of_a_table_are_not_taken_for_those_of_the_hash(photos, tmp_path):
    """A tenth of the table's test split was evaluated, under the name of the test split that training made."""
    rows = [f"photos/{of}/{i}.png,{'train' if i < 90 else 'val' if i < 110 else 'test'}" for of in ("Real", "Fake")
            for i in range(150)]  # fmt: skip
    (tmp_path / "splits.csv").write_text("uri,split\n" + "\n".join(rows))
    images = read(photos, labels=str(tmp_path / "splits.csv"))
    chosen, line = select_held_out(read(photos), trained_on(images), {}, never)
    assert uris_of(chosen) == uris_of(images, "test")
    assert len(chosen.table) == 80
    assert chosen.table["split"].unique().to_pylist() == ["test"]
    assert "evaluating 80 of 300 images, all that the model was not trained or tuned on" in line


def test_a_model_that_does_not_say_what_it_was_trained_on(photos):
    images = read(photos)
    chosen, line = select_held_out(images, None, {}, never)
    assert uris_of(chosen) == uris_of(images, "test")
    assert "does not say what it was trained on; --split all" in line


def test_nothing_is_left(photos):
    trained = trained_on(read(photos))
    images = read(photos)
    rest = labels.Labelled(images.table.filter(pc.not_equal(images.table["split"], "test")), place=images.place)
    with pytest.raises(UserError, match="training left none"):
        select_held_out(rest, trained, {}, never)


def test_a_limit_counts_the_whole(photos, tmp_path):
    other = read(make(tmp_path / "other", *images_in("real", "fake", number=150)))
    assert len(labels.draw(other, 40, 0, whole=True).table) == 40
    chosen, _ = select_held_out(other, trained_on(read(photos)), {}, hashes)
    drawn = labels.draw(chosen, 41, 0, whole=True)
    assert drawn.table["label"].to_pylist().count("real") == 21
    assert drawn.table["row"].to_pylist() == list(range(41))


def test_older_bundles_are_read(tmp_path):
    columns = [field for field in leakage.SCHEMA if field.name != "num_bytes"]
    old = pa.table({"uri": ["a"], "split": ["train"], "sha256": ["x"], "phash": [1]}, schema=pa.schema(columns))
    pq.write_table(old, tmp_path / leakage.FILE)
    found = leakage.load(str(tmp_path))
    assert found.schema.equals(leakage.SCHEMA)
    assert found["num_bytes"].to_pylist() == [None]


@pytest.mark.ray
def test_a_job_evaluates_what_was_not_seen(trained, sample_folder, tmp_path, capsys):
    """Other images are all evaluated, however few; training images only when they are asked for, and then marked."""
    from deepfake_ray.drivers.evaluate import evaluate

    sample.generate(str(tmp_path / "d"), seed=7, num_train=0, num_test=20)
    options = {"model": str(trained / "model"), "output": str(tmp_path / "o")}
    found = evaluate(EvaluateConfig(data=str(tmp_path / "d" / "Test"), **options))
    assert (found["split"], found["num_scored"]) == ("all", 20)
    assert pq.read_table(tmp_path / "o" / "predictions")["split"].null_count == 20
    assert "evaluating all 20 images" in capsys.readouterr().err
    seen = {"data": str(sample_folder / "Train"), "model": options["model"], "output": str(tmp_path / "p")}
    with pytest.raises(UserError, match="training left none"):
        evaluate(EvaluateConfig(**seen))
    found = evaluate(EvaluateConfig(**seen, split="all", limit=20))
    assert (found["split"], found["num_scored"]) == ("all", 20)
    assert "20 of 20 images were in the model's training data" in " ".join(found["warnings"])
