"""Tables as people's programs write them; one spelling of each place; what a table may name."""

import shlex
import subprocess
import sys

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from deepfake_ray import schema
from deepfake_ray.data import labels, manifest, tables
from deepfake_ray.errors import UserError
from deepfake_ray.evaluation import label_join
from deepfake_ray.storage import uris

ROWS = [("a.png", "real"), ("b c.png", "fake"), ("d,e.png", "real"), ("ü.png", "fake")]
BOM = "\ufeff"


def written(rows=ROWS, *, head="uri,label", separator=",", quote=True):
    lines = [head.replace(",", separator)]
    lines += [separator.join(f'"{value}"' if quote else value for value in row) for row in rows]
    return "\n".join(lines) + "\n"


def listed(path):
    rows = manifest.list_images(str(path)).table.to_pylist()
    return [(row["uri"].removeprefix(f"{path.parent}/"), row["label"]) for row in rows]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        # Public reports: pandas 13497 (BOM), community.general 544 (blanks), orange3 7000 (separators), BELS 39.
        ("plain.csv", written().encode()),
        ("bom.csv", (BOM + written()).encode()),
        ("utf16.csv", written().encode("utf-16")),
        ("utf16be.csv", (BOM + written()).encode("utf-16-be")),
        ("utf16 without mark.csv", written().encode("utf-16-le")),
        ("windows.csv", (BOM + written().replace("\n", "\r\n")).encode()),
        ("semicolon.csv", written(separator=";").encode()),
        ("tab.csv", written(separator="\t").encode()),
        ("tab.tsv", written(separator="\t", quote=False).encode()),
        ("comma.tsv", written().encode()),
        ("bar.csv", written(separator="|").encode()),
        ("upper.CSV", written(head="URI,Label").encode()),
        ("quoted.csv", written(head='"URI" ,"Label"').encode()),
        ("blank lines first.csv", ("\n\n" + written()).encode()),
        ("label first.csv", written([(b, a) for a, b in ROWS], head="label,uri").encode()),
        ("index.csv", written([(str(i), *row) for i, row in enumerate(ROWS)], head=",uri,label").encode()),
        ("more.csv", written([(*row, "x", "y") for row in ROWS], head="uri,label,note,note").encode()),
        ("spaced.csv", written([(a, f" {b} ") for a, b in ROWS], head="uri, label").encode()),
        ("semicolon utf16.csv", written(separator=";").encode("utf-16")),
    ],
)
def test_text_tables_of_any_usual_spelling(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert listed(tmp_path / name) == ROWS


def test_a_padded_table_pads_uris_too(tmp_path):
    (tmp_path / "t.csv").write_text("label, uri\nreal, a.png\nfake, b c.png\n")
    assert listed(tmp_path / "t.csv") == [("a.png", "real"), ("b c.png", "fake")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_text_files_of_any_usual_encoding(tmp_path, encoding):
    (tmp_path / "t.txt").write_bytes("a.png\r\n\nb c.png \nü.png".encode(encoding))
    assert [uri for uri, _ in listed(tmp_path / "t.txt")] == ["a.png", "b c.png ", "ü.png"]


def test_a_long_table_is_read_like_a_short_one(tmp_path):
    """The beginning decides for the whole, also where a character is cut by its end."""
    rows = [(f"{'é' * 20}{i}.png", "real") for i in range(5000)]  # some 250 KB
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "t.csv").write_bytes(written(rows, separator=";", quote=False).encode(encoding))
        assert listed(tmp_path / "t.csv") == rows


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"path;label\na;real\n", r"must have a column uri: .* has path, label \(read with semicolons"),
        (b"path,label\na,real\n", r"has path, label \(read with commas"),
        (b"uri,URI\na,b\n", "has uri twice"),
        (b"", "must have a header"),
        ("uri,label\na,größer\n".encode("latin-1"), "must be in UTF-8 or UTF-16: .*t.csv is not .* at byte 14"),
        (b"uri,label\na,hat\n", "label must be one of .*t.csv has 'hat'"),
        (b"uri,split\na,holdout\n", "split must be one of .*t.csv has 'holdout'"),
        (b"uri,label\n,real\n", "must name a uri in each row"),
        (b"uri,label\nC:\\data\\a.png,real\n", r"the Windows path 'C:.*write paths with slashes"),
    ],
)
def test_what_is_wrong_with_a_text_table_is_named(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(UserError, match=message):
        manifest.list_images(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    "column",
    [["0", "1", None], [0, 1, None], [0.0, 1.0, None], pa.array(["0", "1", None]).dictionary_encode()],
    ids=["text", "int", "float", "dictionary"],
)
def test_how_digits_are_read_is_said(tmp_path, capsys, column):
    """ImageFolder numbers classes by the alphabet: fake would be 0."""
    pq.write_table(pa.table({"URI": ["a", "b", "c"], " Label": column}), tmp_path / "t.parquet")
    assert listed(tmp_path / "t.parquet") == [("a", "real"), ("b", "fake"), ("c", None)]
    assert "0" in (said := capsys.readouterr().err)
    assert "= real, 1" in said
    assert said.rstrip().endswith("= fake")
    pq.write_table(pa.table({"uri": ["a", "b"], "label": ["real", "fake"]}), tmp_path / "t.parquet")
    assert listed(tmp_path / "t.parquet") == [("a", "real"), ("b", "fake")]
    assert "labels in" not in capsys.readouterr().err


def test_names_in_tables_are_those_of_folders(tmp_path):
    table = {"uri": list("abcde"), "split": ["Training", " val", "Test-Data", "dev ", "evaluation"]}
    table |= {"label": ["Real ", "nature", "AI", " fake", "1_fake"], "source": [" sora", "", "x", None, " "]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    rows = manifest.list_images(str(tmp_path / "t.parquet")).table
    assert rows["split"].to_pylist() == ["train", "validation", "test", "validation", "test"]
    assert rows["label"].to_pylist() == ["real", "real", "fake", "fake", "fake"]
    assert rows["source"].to_pylist() == ["sora", None, "x", None, None]


# --- one spelling of each place


@pytest.mark.parametrize(
    ("uri", "folder", "expected"),
    [
        ("x.png", "/t", "/t/x.png"),
        ("./x.png", "/t", "/t/x.png"),
        ("a//x.png", "/t", "/t/a/x.png"),
        ("a/../x.png", "/t", "/t/x.png"),
        ("../x.png", "/t/u", "/t/x.png"),
        ("/t/./x.png", "/u", "/t/x.png"),
        ("/t//x.png", "/u", "/t/x.png"),
        ("file:///t/x.png", "/u", "/t/x.png"),
        ("FILE:///t/y/../x.png", "/u", "/t/x.png"),
        ("/t/a..b/.x./...png", "/u", "/t/a..b/.x./...png"),
        ("/t/a b%20c#d?e.png", "/u", "/t/a b%20c#d?e.png"),
        # A bucket's keys are literal; only what is relative to the table is a path.
        ("s3://b/a//./../x.png", "/u", "s3://b/a//./../x.png"),
        ("S3://b/x.png", "/u", "s3://b/x.png"),
        ("./y/../x.png", "s3://b/in//t", "s3://b/in//t/x.png"),
        ("../x.png", "s3://b/in", "s3://b/x.png"),
        ("x.png", "s3://b", "s3://b/x.png"),
    ],
)
def test_a_place_has_one_spelling(uri, folder, expected):
    for others in ([], ["/z/plain.png"]):
        found = uris.normalise_uris(pa.chunked_array([[uri, *others]]), folder)
        assert found.to_pylist() == [expected, *others]
    assert uris.normalise_uris(pa.chunked_array([[expected]]), folder).to_pylist() == [expected]


def test_outside_of_the_bucket_is_nothing():
    with pytest.raises(UserError, match="must name places in it"):
        uris.normalise_uris(pa.chunked_array([["../../x.png"]]), "s3://b/in")


def split_of(folder, name, spelled):
    rows = [(spelled(i), "fake" if i % 2 else "real") for i in range(200)]
    (folder / name).write_text(written(rows))
    table = labels.read_labelled(str(folder / name)).table
    return dict(zip(table["uri"].to_pylist(), table["split"].to_pylist(), strict=True))


def test_spelling_moves_no_image_between_splits(tmp_path):
    plain = split_of(tmp_path, "plain.csv", lambda i: f"flat/{i}.png")
    assert len(plain) == 200
    spellings = ["./flat/{}.png", "flat//{}.png", "flat/../flat/{}.png", f"{tmp_path}/flat/{{}}.png",
                 f"file://{tmp_path}/./flat/{{}}.png"]  # fmt: skip
    for number, spelling in enumerate(spellings):
        other = split_of(tmp_path, f"{number}.csv", lambda i, spelling=spelling: spelling.format(i))
        assert {uri.replace(str(number) + ".csv", "plain.csv"): of for uri, of in other.items()} == plain


def test_a_place_spelled_twice_is_one_image(tmp_path):
    """`./x.png` beside `x.png` was two rows, in two splits."""
    rows = [(f"{i}.png", "fake" if i % 2 else "real") for i in range(200)]
    again = [(f"./{name}", of) for name, of in rows[:50]] + [(f"{tmp_path}//{name}", of) for name, of in rows[:7]]
    (tmp_path / "t.csv").write_text(written(rows + again))
    found = labels.read_labelled(str(tmp_path / "t.csv"))
    assert (len(found.table), found.num_repeated_uris) == (200, 57)
    assert found.table["row"].to_pylist() == list(range(200))


def write(place, *places):
    with manifest.Writer(str(place)) as writer:
        for page in manifest.pages_of([str(one) for one in places]):
            writer.add(page)
        return writer.close()


@pytest.mark.parametrize("column", ["label", "split"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_contradicting_repetition_is_refused(tmp_path, column, in_memory):
    names = {"label": ("real", "fake"), "split": ("train", "test")}[column]
    rows = [(f"{i}.png", names[i % 2]) for i in range(20)]
    rows += [(f"./{i}.png", names[(i + (i < 5)) % 2]) for i in range(20)]  # five of twenty are the other way round
    (tmp_path / "t.csv").write_text(written(rows, head=f"uri,{column}"))
    message = (
        rf"same label and split: 5 rows have another, such as .*/0\.png \({column} {names[0]} and {names[1]}\), .*/2"
    )
    look = manifest.list_images if in_memory else lambda place: write(tmp_path / "m", place)
    with pytest.raises(UserError, match=message) as caught:
        look(str(tmp_path / "t.csv"))
    assert str(caught.value).count(".png (") == 3


def test_overlapping_places_are_listed_once(tmp_path):
    for name in ("a/x/1.jpg", "a/x/2.jpg", "a/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = write(tmp_path / "m", tmp_path / "a", tmp_path / "a" / "x", f"{tmp_path}/a/x/../3.jpg")
    assert (found.num_images, found.num_repeated_uris) == (3, 3)


def test_labels_and_predictions_match_in_any_spelling(tmp_path):
    """Also predictions of earlier versions, which kept a table's spelling."""
    (tmp_path / "d").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "d" / name).write_bytes(b"x")
    (tmp_path / "l.csv").write_text("uri,label\n./d/a.png,real\nd//b.png,fake\n")
    table = labels.read_labelled(str(tmp_path / "d"), labels=str(tmp_path / "l.csv"), use_made_splits=False).table
    assert table["label"].to_pylist() == ["real", "fake"]
    place = tmp_path / "scores" / "predictions"
    place.mkdir(parents=True)
    columns = {field.name: [None] * 3 for field in schema.PREDICTIONS}
    columns |= {"row": [0, 1, 2], "status": ["ok"] * 3, "model_id": ["m"] * 3, "run_id": ["r"] * 3}
    columns |= {
        "uri": [f"{tmp_path}/./d/a.png", f"file://{tmp_path}/d/b.png", "https://host/c.png"],
        "scored_at": [0] * 3,
    }
    pq.write_table(pa.table(columns, schema=schema.PREDICTIONS), place / "part-00000.parquet")
    found = label_join.join(str(tmp_path / "scores"), table, str(tmp_path / "o"))
    assert found == {"num_images": 2, "num_errors": 0, "num_without_prediction": 0, "num_without_label": 1}


# --- what a table may name


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("https://host/a.png", r"has 'https://host/a.png', and https:// is not read; copy the images"),
        ("s3a://bucket/a.png", "s3a:// is not read; write s3://"),
        ("ftp://host/a.png", "ftp:// is not read"),
        ("HTTP://host/a.png", "HTTP:// is not read"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet", "txt"])
def test_schemes_that_are_not_read_are_named(tmp_path, uri, message, kind):
    table = pa.table({"uri": ["a.png", "s3://b/c.png", uri]})
    place = tmp_path / f"t.{kind}"
    match kind:
        case "csv":
            pyarrow.csv.write_csv(table, place)
        case "parquet":
            pq.write_table(table, place)
        case _:
            place.write_text("\n".join(table["uri"].to_pylist()))
    with pytest.raises(UserError, match=message):
        manifest.list_images(str(place))


@pytest.mark.parametrize("uri", ["/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd"])
def test_a_table_in_a_bucket_names_no_local_file(uri, monkeypatch):
    """Size, hash and first bytes of any file of the nodes would land in the predictions."""
    pages = [pa.table({"uri": ["s3://b/a.png", uri]})]
    monkeypatch.setattr(tables, "_pages", lambda place: iter(pages))
    with pytest.raises(UserError, match=r"must not name files of the machine .*passwd'; .*--shared-storage"):
        list(tables.table_pages("s3://b/t.csv"))
    (found,) = tables.table_pages("s3://b/t.csv", shared_storage=True)
    assert found["uri"].to_pylist() == ["s3://b/a.png", "/etc/passwd"]
    (found,) = tables.table_pages("/local/t.csv")
    assert found["uri"].to_pylist() == ["s3://b/a.png", "/etc/passwd"]


@pytest.mark.parametrize("renamed", [False, True], ids=["image", "renamed to uri"])
@pytest.mark.parametrize("name", ["train-00000.parquet", 'it\'s "quoted" $HOME.parquet'])
def test_advice_for_a_table_of_images_works(tmp_path, renamed, name):
    """Hugging Face's Parquet: a column of structs. Renaming it, as was the advice, ended in a TypeError."""
    images = [{"bytes": bytes([i]) * 3, "path": f"{i}.png"} for i in range(4)]
    pq.write_table(pa.table({"uri" if renamed else "image": images, "label": [0, 1, 1, 0]}), tmp_path / name)
    with pytest.raises(UserError, match="holds the images themselves") as caught:
        manifest.list_images(str(tmp_path / name))
    command = shlex.split(str(caught.value).split("\n", 1)[1])
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    assert listed(tmp_path / "images.csv") == [
        (f"images/{i}", of) for i, of in enumerate(["real", "fake", "fake", "real"])
    ]
    assert (tmp_path / "images" / "2").read_bytes() == b"\2\2\2"


@pytest.mark.parametrize("table_first", [True, False])
def test_a_label_that_comes_too_late_is_not_lost_without_a_word(tmp_path, capsys, table_first):
    """`score.py --images FOLDER TABLE`: the first row of an image stays, and a folder's has no label."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jpg").write_bytes(b"")
    (tmp_path / "t.csv").write_text("uri,label\nd/a.jpg,fake\n")
    places = [str(tmp_path / "t.csv"), str(tmp_path / "d")]
    found = manifest.manifest_from_pages(manifest.pages_of(places if table_first else places[::-1]))
    assert found.table["label"].to_pylist() == ["fake" if table_first else None]
    assert ("1 labels or splits are left out" in capsys.readouterr().err) != table_first
