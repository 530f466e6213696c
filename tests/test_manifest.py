import os

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from deepfake_ray import labels, manifest
from deepfake_ray.errors import UserError


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (len(name) % 7 + 1))
    return str(folder)


def rows(found, *columns):
    return [tuple(row[c] for c in columns) for row in found.table.to_pylist()]


def test_kaggle_layout_in_any_letter_case(tmp_path):
    names = [f"{s}/{c}/{i}.JPG" for s in ("TRAIN", "valid", "Test") for c in ("fake", "REAL") for i in (1, 2)]
    found = labels.read_labelled(make(tmp_path, *names))
    assert manifest.count(found.table) == {
        "train": {"real": 2, "fake": 2},
        "validation": {"real": 2, "fake": 2},
        "test": {"real": 2, "fake": 2},
    }
    assert [row for (row,) in rows(found, "row")] == list(range(12))
    assert all(os.path.isabs(uri) and os.path.getsize(uri) == n for uri, n in rows(found, "uri", "num_bytes"))


@pytest.mark.parametrize(
    ("name", "label", "split", "source"),
    [
        ("Train/Fake/stylegan/a.png", "fake", "train", "stylegan"),
        ("test/progan/1_fake/a.png", "fake", "test", "progan"),
        ("progan/cat/0_real/a.png", "real", None, "progan/cat"),
        ("Generated/val/a.png", "fake", "validation", None),
        ("AI/a.png", "fake", None, None),
        ("Original/Fake/a.png", "real", None, "Fake"),
        ("authentic/x/a.png", "real", None, "x"),
        ("realistic/a.png", None, None, "realistic"),
    ],
)
def test_folders_tell_label_split_and_source(name, label, split, source):
    assert labels._parse_folders(name) == {"label": label, "split": split, "source": source}


def test_hidden_files_are_skipped_and_others_counted(tmp_path):
    folder = make(
        tmp_path,
        "Real/a.jpg",
        "Real/.b.jpg",
        "Real/notes.txt",
        "Real/noending",
        "__MACOSX/Real/c.jpg",
        ".git/d.jpg",
    )
    found = manifest.list_images(folder)
    assert sorted(os.path.basename(uri) for (uri,) in rows(found, "uri")) == ["a.jpg", "noending"]
    assert [os.path.basename(uri) for uri in found.other_files] == ["notes.txt"]


def test_unusual_names_are_kept_literally(tmp_path):
    names = ["a b.jpg", "c#d.jpg", "e?f.jpg", "g%20h.jpg", "i'j\".jpg", "k\nl.jpg", "ü.jpg"]
    found = manifest.list_images(make(tmp_path, *names))
    assert sorted(os.path.basename(uri) for (uri,) in rows(found, "uri")) == sorted(names)


def many(tmp_path, num=200):
    return make(tmp_path, *[f"{c}/video{i // 4:03d}__{i}.jpg" for c in ("Real", "Fake") for i in range(num)])


def test_without_split_folders_groups_stay_together(tmp_path):
    found = labels.read_labelled(many(tmp_path), group_regex="^(.+?)__")
    splits = {}
    for group, split in rows(found, "group", "split"):
        splits.setdefault(group, set()).add(split)
    assert len(splits) == 50
    assert all(len(of) == 1 for of in splits.values())
    counts = {split: sum(by.values()) for split, by in manifest.count(found.table).items()}
    assert counts["train"] > 250
    assert counts["validation"] >= 8
    assert counts["test"] >= 8


def test_made_splits_depend_on_nothing_but_the_names(tmp_path):
    first = labels.read_labelled(many(tmp_path / "a"))
    second = labels.read_labelled(many(tmp_path / "b"))
    assert rows(first, "split") == rows(second, "split")


def test_missing_validation_is_a_tenth_of_train(tmp_path):
    names = [f"{s}/{c}/{i}.jpg" for s in ("Train", "Test") for c in ("Real", "Fake") for i in range(300)]
    counts = manifest.count(labels.read_labelled(make(tmp_path, *names)).table)
    assert counts["test"] == {"real": 300, "fake": 300}
    assert sum(counts["train"].values()) + sum(counts["validation"].values()) == 600
    assert 30 <= sum(counts["validation"].values()) <= 95


def test_limit_is_balanced_and_seeded(tmp_path):
    folder = make(
        tmp_path, *[f"{s}/{c}/{i}.jpg" for s in ("Train", "Val") for c in ("Real", "Fake") for i in range(50)]
    )
    first, again, other = (labels.read_labelled(folder, limit=10, seed=seed) for seed in (1, 1, 2))
    assert manifest.count(first.table) == {
        "train": {"real": 5, "fake": 5},
        "validation": {"real": 5, "fake": 5},
    }
    assert first.table == again.table
    assert first.table != other.table


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "There must be an image"),
        (["notes.txt"], "found none among 1 files"),
        (["Real/a.jpg", "Real/b.jpg"], "both classes: .* 2 real and 0 fake"),
        (["Real/a.jpg", "Fake/b.jpg", "holidays/c.jpg"], r"holidays \(1\)\. Known for real: 0_real"),
        (
            ["Train/Real/a.jpg", "Train/Fake/a.jpg", "Real/c.jpg"],
            "Either each image lies under a split folder",
        ),
        (["Train/Real/a.jpg", "Train/Fake/a.jpg", "Val/Real/c.jpg"], "validation would have no fake image"),
    ],
)
def test_mistakes_are_named(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        labels.read_labelled(make(tmp_path, *names))


def test_no_such_place(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        manifest.list_images(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="begins with s3"):
        manifest.list_images("ftp://host/images")


@pytest.mark.parametrize("regex", ["(", "nogroup", "^(zzz)"])
def test_bad_group_regex(tmp_path, regex):
    with pytest.raises(UserError, match="group-regex must"):
        labels.read_labelled(many(tmp_path, 8), group_regex=regex)


def test_tables(tmp_path):
    table = pa.table({"uri": ["a.jpg", "/x/b.jpg", "s3://bucket/c d.jpg"], "label": ["Fake", "0", None]})
    pq.write_table(table, tmp_path / "t.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "t.csv")
    for name in ("t.parquet", "t.csv"):
        found = manifest.list_images(str(tmp_path / name))
        uris = [uri for (uri,) in rows(found, "uri")]
        assert uris == [f"{tmp_path}/a.jpg", "/x/b.jpg", "s3://bucket/c d.jpg"]
    parquet = manifest.list_images(str(tmp_path / "t.parquet"))
    assert rows(parquet, "label") == [("fake",), ("real",), (None,)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a"]}, "must have a column uri: .* has path"),
        ({"uri": ["a", "a"]}, "name each uri once"),
        ({"uri": ["a"], "label": ["maybe"]}, "label must be one of"),
        ({"uri": ["a"], "split": ["holdout"]}, "split must be one of"),
        ({"uri": pa.array([], pa.string())}, "has no rows"),
    ],
)
def test_bad_tables(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=message):
        manifest.list_images(str(tmp_path / "t.parquet"))


def test_labels_override_folders(tmp_path):
    folder = make(tmp_path / "d", *[f"{c}/{i}.jpg" for c in ("Real", "Fake") for i in range(40)])
    uri = f"{folder}/Real/3.jpg"
    pq.write_table(pa.table({"uri": [uri], "label": ["fake"], "source": ["sora"]}), tmp_path / "labels.parquet")
    found = labels.read_labelled(folder, labels=str(tmp_path / "labels.parquet"))
    assert {u: (label, s) for u, label, s in rows(found, "uri", "label", "source")}[uri] == ("fake", "sora")


def test_written_manifest_is_read_back_by_chunks(tmp_path):
    found = manifest.list_images(make(tmp_path / "d", *[f"{i:03d}.jpg" for i in range(25)], "x.txt"))
    place = str(tmp_path / "manifest")
    manifest.write(found, place, rows_per_chunk=10)
    chunks = manifest.chunks(place)
    assert [chunk.num_rows for chunk in chunks] == [10, 10, 5]
    assert pa.concat_tables(manifest.read_chunk(chunk) for chunk in chunks) == found.table
    assert pq.read_table(place) == found.table  # pyarrow, too, passes over _other_files.parquet
    assert pq.read_table(f"{place}/{manifest.OTHER_FILES}")["uri"].to_pylist() == [f"{tmp_path}/d/x.txt"]


def test_hash_names_the_set_of_images(tmp_path):
    folder = make(tmp_path, "Real/a.jpg", "Fake/b.jpg")
    first = manifest.list_images(folder).sha256
    assert manifest.list_images(folder).sha256 == first
    make(tmp_path, "Fake/c.jpg")
    assert manifest.list_images(folder).sha256 != first
