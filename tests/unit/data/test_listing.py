"""What is listed of trees and buckets that are not tidy: every file once, and never an end before the end."""

import os
import shutil
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3_server import KEYS, Stub, error_body, send

from deepfake_ray.data import manifest
from deepfake_ray.data.image_files import Pick, is_left_out
from deepfake_ray.data.listing import files_in
from deepfake_ray.errors import UserError
from deepfake_ray.storage import s3, stores

JPEG = b"\xff\xd8\xff\xe0" + bytes(100)


def make(folder, *names, data=JPEG):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def listed(folder):
    """The relative paths; those that end with `/` are folders that were passed over."""
    return [name for page in files_in(str(folder)) for name in page["relative"].to_pylist()]


@pytest.fixture
def as_nobody(tmp_path):
    """Root reads everything; a user with no rights does not."""
    if os.geteuid() != 0:
        yield
        return
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(0o755)
    os.setegid(65534)
    os.seteuid(65534)
    yield
    os.seteuid(0)
    os.setegid(0)


# --- bad entries (godirwalk 64, twisted 3098, s3cmd 23, zevv/duc 258, d4rken-org/sdmaid-se 2163)


def test_a_link_to_itself_costs_nothing_else(tmp_path):
    make(tmp_path, "a.jpg", "z/b.jpg")
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    os.symlink("two", tmp_path / "one")
    os.symlink("one", tmp_path / "two")
    assert listed(tmp_path) == ["a.jpg", "loop.jpg", "one", "two", "z/b.jpg"]
    found = manifest.list_images(str(tmp_path))
    assert [os.path.basename(uri) for uri in found.table["uri"].to_pylist()] == ["a.jpg", "loop.jpg", "b.jpg"]


def test_folders_linked_in_a_ring_are_listed_once(tmp_path, capsys):
    make(tmp_path, "p/p.jpg", "q/q.jpg", "q/deep/r.jpg")
    os.symlink("../q", tmp_path / "p" / "to_q")
    os.symlink("../p", tmp_path / "q" / "to_p")
    os.symlink("../../q/deep", tmp_path / "q" / "deep" / "again")
    os.symlink(tmp_path, tmp_path / "q" / "to_root")
    os.symlink(tmp_path.parent, tmp_path / "q" / "to_above")
    assert listed(tmp_path) == ["p/p.jpg", "q/q.jpg", "q/deep/r.jpg"]
    assert "5 links to folders that are listed at another place" in capsys.readouterr().err


def test_a_link_gives_no_other_label_to_a_folder_in_the_same_place(tmp_path):
    """`fake` comes first in the order of names; what is in it is real all the same."""
    make(tmp_path, "real/a.jpg", "fake/b.jpg")
    os.symlink("../real", tmp_path / "fake" / "all")
    assert listed(tmp_path) == ["fake/b.jpg", "real/a.jpg"]


def test_links_to_other_places_are_followed_once(tmp_path):
    outside = make(tmp_path / "outside", "a.jpg", "sub/b.jpg")
    inside = make(tmp_path / "inside", "c.jpg")
    os.symlink(outside / "sub", inside / "1")
    os.symlink(outside, inside / "2")
    os.symlink(outside, inside / "3")
    os.symlink("../../outside", outside / "sub" / "ring")
    # `2` is below `1/ring`, which is `outside`: its files come there.
    assert listed(inside) == ["c.jpg", "1/b.jpg", "1/ring/a.jpg"]


def test_an_unreadable_folder_is_named_and_the_rest_is_listed(tmp_path, as_nobody, capsys):
    os.seteuid(0)
    make(tmp_path, "a.jpg", "b/c.jpg", "d/e.jpg", "d/f/g.jpg")
    (tmp_path / "b").chmod(0o000)
    (tmp_path / "d" / "f").chmod(0o000)
    os.seteuid(65534)
    assert listed(tmp_path) == ["a.jpg", "b/", "d/e.jpg", "d/f/"]
    said = capsys.readouterr().err
    assert "2 folders that cannot be read, such as b (Permission denied)" in said
    found = manifest.list_images(str(tmp_path))
    assert len(found.table) == 2
    assert list(found.other_files) == [f"{tmp_path}/b/", f"{tmp_path}/d/f/"]
    os.seteuid(0)
    (tmp_path).chmod(0o700)
    os.seteuid(65534)
    with pytest.raises(UserError, match=r"must be listable: .*; check the permissions of the folder") as caught:
        manifest.list_images(str(tmp_path))
    assert "bucket" not in str(caught.value)
    os.seteuid(0)
    for folder in (tmp_path, tmp_path / "b", tmp_path / "d" / "f"):
        folder.chmod(0o755)


def test_files_and_folders_that_vanish_cost_nothing_else(tmp_path):
    make(tmp_path, *(f"{i:05d}.jpg" for i in range(9000)), "sub/a.jpg", "tub/b.jpg", data=b"x")
    pages = files_in(str(tmp_path))
    names = next(pages)["relative"].to_pylist()
    (tmp_path / "08500.jpg").unlink()
    shutil.rmtree(tmp_path / "sub")
    for page in pages:
        names += page["relative"].to_pylist()
        if "08500.jpg" in names and names[-1] == "08999.jpg":
            assert page["num_bytes"].null_count == 1
    assert names == [*(f"{i:05d}.jpg" for i in range(9000)), "sub/", "tub/b.jpg"]


KINDS = st.sampled_from(["file", "pipe", "socket", "dangling", "loop", "up", "aside", "folder", "locked", "vanishes"])


@given(tree=st.lists(st.tuples(st.sampled_from(["", "a/", "a/b/", "c/"]), KINDS), max_size=12))
def test_every_regular_file_is_listed_once_whatever_lies_beside_it(tmp_path_factory, tree):
    root = tmp_path_factory.mktemp("tree")
    expected, sockets = set(), []
    for i, (folder, kind) in enumerate(tree):
        path = root / folder / f"{i:02d}{kind}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind in ("file", "vanishes"):
            path.write_bytes(JPEG)
            expected |= {str(path.relative_to(root))} if kind == "file" else set()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[-1].bind(str(path)) if len(str(path)) < 100 else None
        elif kind in ("folder", "locked"):
            make(path, "inner.jpg")
            expected |= {str((path / "inner.jpg").relative_to(root))}
        else:
            target = {"dangling": "nowhere", "loop": path.name, "up": "..", "aside": str(root / "a")}[kind]
            os.symlink(target, path)
    walk = iter(files_in(str(root)))
    names = []
    for page in walk:
        names += page["relative"].to_pylist()
        for path in root.rglob("*vanishes.jpg"):
            path.unlink()
    for each in sockets:
        each.close()
    regular = [name for name in names if os.path.isfile(root / name) and not os.path.islink(root / name)]
    assert len(names) == len(set(names))
    assert set(regular) == expected
    shutil.rmtree(root)


# --- what is no image


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ("@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", True), ("x/@EADIR/a.jpg", True), ("real/#recycle/a.jpg", True),
        ("$RECYCLE.BIN/S-1-5/a.jpg", True), ("$Recycle.Bin/a.jpg", True), ("lost+found/a.jpg", True),
        ("System Volume Information/a.jpg", True), ("__MACOSX/a.jpg", True), (".Trash-1000/files/a.jpg", True),
        ("a/.hidden.jpg", True), ("lost+found2/a.jpg", False), ("my @eaDir/a.jpg", False), ("a.b/c.jpg", False),
        ("recycle/a.jpg", False), ("x$RECYCLE.BIN/a.jpg", False), ("@eaDir.jpg", False),
    ],
)  # fmt: skip
def test_systems_own_folders_are_left_out(relative, expected, tmp_path):
    """photoprism 555, immich 7980, librephotos 64: thumbnails and deleted pictures taken for photos."""
    assert is_left_out(relative) is expected
    make(tmp_path, relative, "real/a.jpg")
    assert listed(tmp_path) == ["real/a.jpg"] if expected else [relative, "real/a.jpg"]


def test_a_file_without_a_suffix_is_an_image_if_it_begins_as_one(tmp_path):
    make(tmp_path, "real/IMG_1", "real/b.png", "LICENSE.d/IMG_2")
    make(tmp_path, "LICENSE", "real/notes", data=b"MIT License\n")
    make(tmp_path, "empty", data=b"")
    os.mkfifo(tmp_path / "pipe")
    found = manifest.list_images(str(tmp_path))
    names = [uri.removeprefix(f"{tmp_path}/") for uri in found.table["uri"].to_pylist()]
    assert names == ["LICENSE.d/IMG_2", "real/IMG_1", "real/b.png"]
    assert {os.path.basename(uri) for uri in found.other_files} == {"LICENSE", "notes", "empty", "pipe"}
    everything = manifest.manifest_from_pages(manifest.pages_of([str(tmp_path)], pick=Pick(include=("*",))))
    assert len(everything.table) == 7


def test_names_without_a_suffix_are_known_in_buckets():
    names = ["a/LICENSE", "README", "Makefile", "CHECKSUMS", "sha256sums", "_SUCCESS", "_committed_123", "_metadata"]
    assert Pick()(names) == [False] * len(names)
    assert Pick()(["a/IMG_1", "LICENSE/0001", "readme1", "0001"]) == [True] * 4


@pytest.mark.parametrize(
    "output",
    [
        ("run.json", "manifest/part-00000.parquet", "predictions/part-0.parquet", "_SUCCESS"),
        ("run.json", "predictions/part-0.parquet", "figures/roc.png", "metrics.json"),
        ("config.json", "manifest/part-00000.parquet", "training.png"),
    ],
)
def test_the_output_of_a_job_below_the_images_is_passed_over(tmp_path, output, capsys):
    make(tmp_path, "real/a.jpg", *(f"real/run/{name}" for name in output))
    found = manifest.list_images(str(tmp_path))
    assert [os.path.basename(uri) for uri in found.table["uri"].to_pylist()] == ["a.jpg"]
    assert list(found.other_files) == [f"{tmp_path}/real/run/"]
    assert "a job of this program wrote, such as real/run" in capsys.readouterr().err
    make(tmp_path, "real/run.json")  # of somebody else
    assert "real/a.jpg" in listed(tmp_path)


# --- places that are none


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shard.tar", "an archive; unpack it"), ("X.ZIP", "an archive; unpack it"), ("x.tar.gz", "unpack it"),
        ("clip.mp4", "videos are not read yet"), ("list.jsonl", "CSV with a column uri"),
    ],
)  # fmt: skip
def test_a_container_as_the_place_says_what_to_do(tmp_path, name, said):
    make(tmp_path, name)
    for place in (str(tmp_path / name), f"s3://bucket/{name}"):
        with pytest.raises(UserError, match=said):
            list(files_in(place))
    make(tmp_path, "folder.zip/a.jpg")
    assert listed(tmp_path / "folder.zip") == ["a.jpg"]


def test_a_quoted_pattern_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"write it without quotes, or give the folder and --include"):
        list(files_in(str(tmp_path / "*.jpg")))
    with pytest.raises(UserError, match=r"does not exist; check the path"):
        list(files_in(str(tmp_path / "none")))


# --- buckets


def listing(keys, request, denied=()):
    """Answers ListObjectsV2 for a bucket of these keys, 2 a page."""
    from urllib.parse import parse_qs, urlsplit
    from xml.sax.saxutils import escape

    query = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    if prefix in denied:
        send(request, 403, error_body("AccessDenied", "no"))
        return
    found, folders = [], []
    for key in sorted(key for key in keys if key.startswith(prefix)):
        rest = key[len(prefix) :]
        if delimiter and delimiter in rest:
            folders.append(prefix + rest.split(delimiter)[0] + delimiter)
        else:
            found.append(key)
    start = int(query.get("continuation-token", 0))
    shown = found if delimiter else found[start : start + 2]
    more = not delimiter and start + 2 < len(found)
    entries = "".join(
        f'<Contents><Key>{escape(key)}</Key><Size>5</Size><ETag>"e"</ETag>'
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key in shown
    ) + "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(set(folders)))
    token = f"<NextContinuationToken>{start + 2}</NextContinuationToken>" if more else ""
    body = (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
    )
    send(request, 200, body.encode(), {"Content-Type": "application/xml"})


@pytest.fixture
def bucket(monkeypatch):
    """Makes a stub that lists some keys the S3 of the environment."""
    stubs = []

    def serve(keys, denied=()):
        stubs.append(Stub(lambda request: listing(keys, request, denied)))
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": stubs[-1].url, "AWS_REGION": "us-east-1"}).items():
            monkeypatch.setenv(name, value)
        return stubs[-1]

    monkeypatch.setattr(s3, "RETRIES", 1)
    yield serve
    for stub in stubs:
        stub.close()
    for cached in (stores.object_store, s3._client):
        cached.cache_clear()


TIDY = ["in/fake/a.jpg", "in/fake/b.jpg", "in/real/c.jpg", "in/real/d.jpg", "in/real/e.jpg"]
UNTIDY = [
    "in/fake/@eaDir/a.jpg/THUMB.jpg", "in/real/#recycle/x.jpg", "in/real/lost+found/y.jpg", "in/.cache/z.jpg",
    "in/@eaDir/1.jpg", "in/real/$RECYCLE.BIN/2.jpg", "in/System Volume Information/3.jpg",
]  # fmt: skip
OUTPUT = ["figures/roc.png", "manifest/part-00000.parquet", "predictions/part-0.parquet", "run.json"]


@pytest.mark.parametrize("at_once", [1, 8])
@pytest.mark.parametrize("output", ["in/real/run/", "in/run/"])
@pytest.mark.parametrize("mark", ["_SUCCESS", "_LOCK"])
def test_buckets_are_tidied_alike(bucket, at_once, output, mark, capsys):
    bucket([*TIDY, *UNTIDY, *(output + name for name in (mark, *OUTPUT)), "in/real/x/_SUCCESS", "in/real/x/f.jpg"])
    uris = [uri for page in files_in("s3://bucket/in", at_once=at_once) for uri in page["uri"].to_pylist()]
    expected = [*TIDY, "in/real/x/_SUCCESS", "in/real/x/f.jpg", output]
    assert sorted(uris) == sorted(f"s3://bucket/{key}" for key in expected)
    assert capsys.readouterr().err.count("which a job of this program wrote") == 1


def test_a_prefix_that_may_not_be_listed_is_named_and_the_rest_is_listed(bucket, capsys):
    bucket(TIDY, denied=("in/fake/",))
    uris = [uri for page in files_in("s3://bucket/in") for uri in page["uri"].to_pylist()]
    assert uris == ["s3://bucket/in/fake/", *(f"s3://bucket/{key}" for key in TIDY[2:])]
    assert "s3://bucket/in/fake/, which may not be listed (AccessDenied" in capsys.readouterr().err


def test_a_bucket_that_may_not_be_listed_speaks_of_buckets(bucket):
    bucket(TIDY, denied=("in/",))
    with pytest.raises(UserError, match=r"check the bucket's name, .*; where .* set AWS_REQUEST_PAYER=requester"):
        list(files_in("s3://bucket/in"))
