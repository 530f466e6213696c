import os

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from deepfake_ray.data import folder_names, labels, manifest, tables
from deepfake_ray.data.listing import Pick
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
        ("Train/nature/a.png", "real", "train", None),  # GenImage
        ("authentic/x/a.png", "real", None, "x"),
        ("realistic/a.png", None, None, "realistic"),
    ],
)
def test_folders_tell_label_split_and_source(name, label, split, source):
    found = folder_names.read(os.path.dirname(name))
    assert (found.label, found.split, found.source) == (label, split, source)
    assert not found.odd_label
    assert not found.odd_split


def test_hidden_files_are_skipped_and_others_counted(tmp_path):
    folder = make(
        tmp_path,
        "Real/a.jpg",
        "Real/.b.jpg",
        "Real/notes.txt",
        "Real/noending",
        "Real/Makefile",
        "__MACOSX/Real/c.jpg",
        ".git/d.jpg",
    )
    (tmp_path / "Real" / "noending").write_bytes(b"\xff\xd8\xff\xe0")
    found = manifest.list_images(folder)
    assert sorted(os.path.basename(uri) for (uri,) in rows(found, "uri")) == ["a.jpg", "noending"]
    assert [os.path.basename(uri) for uri in found.other_files] == ["Makefile", "notes.txt"]


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
    assert counts == {"train": 328, "validation": 24, "test": 48}


def test_made_splits_are_those_of_the_first_version(tmp_path):
    """A data set that is split by hash keeps its splits, or earlier models are tested on what they were trained on."""
    counts = manifest.count(labels.read_labelled(many(tmp_path)).table)
    assert counts == {
        "train": {"real": 163, "fake": 162},
        "validation": {"real": 16, "fake": 22},
        "test": {"real": 21, "fake": 16},
    }


def test_made_splits_depend_on_nothing_but_the_names(tmp_path):
    first = labels.read_labelled(many(tmp_path / "a"))
    second = labels.read_labelled(many(tmp_path / "b"))
    assert rows(first, "split") == rows(second, "split")


def test_missing_validation_is_a_tenth_of_train(tmp_path):
    names = [f"{s}/{c}/{i}.jpg" for s in ("Train", "Test") for c in ("Real", "Fake") for i in range(300)]
    counts = manifest.count(labels.read_labelled(make(tmp_path, *names)).table)
    assert counts["test"] == {"real": 300, "fake": 300}
    assert counts["train"] == {"real": 261, "fake": 273}
    assert counts["validation"] == {"real": 39, "fake": 27}


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
        ({"uri": ["a", "a"], "label": ["real", "fake"]}, r"same label and split: .*/a \(label real and fake\)"),
        ({"uri": ["a"], "label": ["maybe"]}, "label must be one of"),
        ({"uri": ["a"], "split": ["holdout"]}, "split must be one of"),
        ({"uri": pa.array([], pa.string())}, "found none among 0 files"),
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
    assert manifest.write(found, place) == manifest.Listed(25, 1, found.sha256)
    chunks = manifest.chunks(place, rows_per_chunk=10)
    assert [chunk.num_rows for chunk in chunks] == [10, 10, 5]
    assert pa.concat_tables(manifest.read_chunk(chunk) for chunk in chunks) == found.table
    assert pq.read_table(place) == found.table  # pyarrow, too, passes over _other_files.parquet
    assert pq.read_table(f"{place}/{manifest.OTHER_FILES}")["uri"].to_pylist() == [f"{tmp_path}/d/x.txt"]


def test_a_long_listing_is_written_as_it_comes(tmp_path):
    """Pages of any size become row groups of one size, chunks do not cross them, and the hash does not care."""
    uris = [f"/x/{i:05d}.jpg" for i in range(20_000)]
    pages = [manifest.Page(tables.manifest_rows({"uri": uris[i : i + 777]}, len(uris[i : i + 777])))
             for i in range(0, len(uris), 777)]  # fmt: skip
    place = str(tmp_path / "manifest")
    with manifest.Writer(place) as writer:
        for page in pages:
            writer.add(page)
        listed = writer.close()
    assert listed == manifest.Listed(20_000, 0, manifest.manifest_from_pages(pages).sha256)
    metadata = pq.read_metadata(f"{place}/part-00000.parquet")
    assert [metadata.row_group(i).num_rows for i in range(3)] == [8192, 8192, 20_000 - 2 * 8192]
    chunks = manifest.chunks(place, rows_per_chunk=3000)
    assert [chunk.num_rows for chunk in chunks] == [3000, 3000, 2192, 3000, 3000, 2192, 3000, 616]
    assert pa.concat_tables(manifest.read_chunk(chunk) for chunk in chunks) == manifest.manifest_from_pages(pages).table


def write_pages(place, pages):
    with manifest.Writer(str(place)) as writer:
        for uris in pages:
            writer.add(manifest.Page(tables.manifest_rows({"uri": uris}, len(uris))))
        return writer.close()


@pytest.mark.parametrize("per_group", [3, 4096])
def test_a_repeated_uri_counts_once(tmp_path, monkeypatch, per_group):
    """Rows, hash and chunks are those of the distinct URIs, wherever the repetitions are; the first row stays.

    (S3 Inventories and joined tables repeat keys: one repetition refused the whole job.)
    """
    monkeypatch.setattr(manifest, "ROWS_PER_GROUP", per_group)
    monkeypatch.setattr(manifest, "ROWS_PER_FILE", 2 * per_group)
    uris = [f"/x/{i}.jpg" for i in (0, 1, 1, 2, 3, 0, 4, 5, 6, 7, 7, 7, 8, 3, 9, 10, 11, 12, 0)]
    listed = write_pages(tmp_path / "m", [uris[:3], uris[3:4], uris[4:]])
    distinct = list(dict.fromkeys(uris))
    assert listed == manifest.Listed(13, 0, write_pages(tmp_path / "n", [distinct]).sha256, 6)
    parts = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert parts == sorted(path.name for path in (tmp_path / "n").iterdir())
    assert pq.read_table(tmp_path / "m")["uri"].to_pylist() == distinct
    assert pq.read_table(tmp_path / "m")["row"].to_pylist() == list(range(13))
    assert [chunk.num_rows for chunk in manifest.chunks(str(tmp_path / "m"), 2)] == [
        chunk.num_rows for chunk in manifest.chunks(str(tmp_path / "n"), 2)
    ]
    pages = [manifest.Page(tables.manifest_rows({"uri": some}, len(some))) for some in (uris[:7], uris[7:])]
    found = manifest.manifest_from_pages(pages)
    assert (found.table["uri"].to_pylist(), found.num_repeated_uris) == (distinct, 6)


def test_a_listing_that_fails_leaves_no_part(tmp_path):
    def pages():
        yield [f"{i}" for i in range(9000)]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_pages(tmp_path / "m", pages())
    assert os.listdir(tmp_path / "m") == []


def test_several_places_and_patterns(tmp_path):
    make(tmp_path / "a", "x/1.jpg", "x/2.png", "y/3.jpg", "notes.txt", "raw.dat")
    make(tmp_path / "b", "4.jpg")
    places = [str(tmp_path / "a"), str(tmp_path / "b")]

    def found(**options):
        pages = list(manifest.pages_of(places, **options))
        images = [uri.removeprefix(f"{tmp_path}/") for page in pages for uri in page.rows["uri"].to_pylist()]
        return images, sorted(os.path.basename(uri) for page in pages for uri in page.other_files)

    assert found() == (["a/x/1.jpg", "a/x/2.png", "a/y/3.jpg", "b/4.jpg"], ["notes.txt", "raw.dat"])
    assert found(limit=2)[0] == ["a/x/1.jpg", "a/x/2.png"]
    assert found(pick=Pick(exclude=["x/*"]))[0] == ["a/y/3.jpg", "b/4.jpg"]
    assert found(pick=Pick(include=["*.jpg", "*.dat"], exclude=["*/3*"])) == (
        ["a/raw.dat", "a/x/1.jpg", "b/4.jpg"], ["2.png", "3.jpg", "notes.txt"],
    )  # fmt: skip
    with pytest.raises(UserError, match="found none among 5 files"):
        found(pick=Pick(include=["*.gif"]))


def test_a_text_file_names_images(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\n\n/x/b c.webp\r\ns3://bucket/d\n")
    uris = [uri for (uri,) in rows(manifest.list_images(str(tmp_path / "list.txt")), "uri")]
    assert uris == [f"{tmp_path}/a.jpg", "/x/b c.webp", "s3://bucket/d"]


INVENTORY = {
    "key": ["in/a b.jpg", "in/c%20d+e.jpg", "in/old.jpg", "in/gone.jpg", "in/notes.txt", "in/"],
    "size": [10, 20, 30, 0, 5, 0],
    "e_tag": ["e1", "e2", "e3", None, "e5", "e6"],
    "last_modified_date": ["2026-01-02T03:04:05.000Z"] * 6,
    "is_latest": [True, True, False, True, True, True],
    "is_delete_marker": [False, False, False, True, False, False],
}


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_an_s3_inventory_names_images(tmp_path, kind):
    import gzip
    import json
    from urllib.parse import quote_plus

    data = tmp_path / "dest" / "bucket" / "daily" / "data"
    data.mkdir(parents=True)
    content = {"sourceBucket": "bucket", "fileFormat": kind, "version": "2016-11-30"}
    if kind == "CSV":
        content["fileSchema"] = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
        lines = [
            f'"bucket","{quote_plus(key, safe="/")}","v","{str(latest).lower()}","{str(gone).lower()}","{size}",'
            f'"{date}","{tag or ""}"\n'
            for key, size, tag, date, latest, gone in zip(*INVENTORY.values(), strict=True)
        ]
        (data / "1.csv.gz").write_bytes(gzip.compress("".join(lines).encode()))
    else:
        dates = pa.array(INVENTORY["last_modified_date"]).cast(pa.timestamp("ms", "UTC"))
        pq.write_table(
            pa.table(INVENTORY | {"last_modified_date": dates, "bucket": ["bucket"] * 6}), data / "1.parquet"
        )
    content["files"] = [{"key": f"bucket/daily/data/{name}"} for name in os.listdir(data)]
    place = tmp_path / "dest" / "bucket" / "daily" / "2026-01-03T01-00Z" / "manifest.json"
    place.parent.mkdir()
    place.write_text(json.dumps(content))
    found = manifest.list_images(str(place))
    assert rows(found, "uri", "num_bytes", "etag") == [
        ("s3://bucket/in/a b.jpg", 10, "e1"),
        ("s3://bucket/in/c%20d+e.jpg", 20, "e2"),
    ]
    assert found.table["mtime"][0].as_py().isoformat() == "2026-01-02T03:04:05+00:00"
    assert list(found.other_files) == ["s3://bucket/in/notes.txt"]


@pytest.mark.parametrize("text", ["{}", "[1]", "no json", '{"sourceBucket": "b", "fileFormat": "ORC", "files": []}'])
def test_a_file_that_is_no_inventory_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json (must|is in orc)"):
        manifest.list_images(str(tmp_path / "manifest.json"))


def test_names_that_are_not_utf_8_are_listed_and_fetched(tmp_path):
    from deepfake_ray.images.fetch import fetch

    names = [b"caf\xe9.jpg", b"a\\xe9.jpg"]  # the second has the four characters \xe9 in its name
    for number, name in enumerate(names):
        (tmp_path / os.fsdecode(name)).write_bytes(bytes([number]))
    uris = [uri for (uri,) in rows(manifest.list_images(str(tmp_path)), "uri")]
    assert uris == [f"{tmp_path}/a\\xe9.jpg", f"{tmp_path}/caf\\xe9.jpg"]
    assert [fetch(uri, 10) for uri in uris] == [b"\1", b"\0"]


def test_links_that_lead_back_end(tmp_path):
    """And each file is listed once, at its own place."""
    folder = make(tmp_path, "d/a.jpg", "e/b.jpg")
    (tmp_path / "d" / "up").symlink_to(tmp_path)
    (tmp_path / "d" / "side").symlink_to(tmp_path / "e")
    found = [uri.removeprefix(folder) for (uri,) in rows(manifest.list_images(folder), "uri")]
    assert found == ["/d/a.jpg", "/e/b.jpg"]  # a link to what is listed anyway is no second image


def test_hash_names_the_set_of_images(tmp_path):
    folder = make(tmp_path, "Real/a.jpg", "Fake/b.jpg")
    first = manifest.list_images(folder).sha256
    assert manifest.list_images(folder).sha256 == first
    make(tmp_path, "Fake/c.jpg")
    assert manifest.list_images(folder).sha256 != first
