"""Files as a listing gives them, and which of them are images. Knows no Ray."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

import pyarrow as pa

from deepfake_ray.storage import files

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".avifs", ".heic", ".heif", ".jp2", ".jxl", ".psd"),
    }
)
ROWS_PER_PAGE = 8192

FILES = pa.schema(
    [
        pa.field("relative", pa.string(), nullable=False),  # the path below the place that was listed
        pa.field("uri", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime", pa.timestamp("us", tz="UTC")),
    ]
)
"""Files or objects, and what the store says of them. A path that ends with `/` is a folder that was passed over."""


def page(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Tuples in the order of `FILES` as a table."""
    columns = zip(*rows, strict=True) if rows else [()] * len(FILES)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, FILES, strict=True)], schema=FILES)


_SYSTEMS_OWN = (
    *("__MACOSX", "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"),  # macOS, Synology, QNAP
    *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "lost+found"),  # Windows, Linux
)
_LEFT_OUT = re.compile(rf"(?:^|/)(?:\.|(?:{'|'.join(map(re.escape, _SYSTEMS_OWN))})(?:/|$))", re.IGNORECASE)


def is_left_out(relative: str) -> bool:
    """Whether a path is hidden, or in a folder that systems keep for themselves: thumbnails, deleted files."""
    return _LEFT_OUT.search(relative) is not None


def is_output(names: Iterable[str], folders: Iterable[str]) -> bool:
    """Whether a folder with these names in it was written by a job of this program: its figures are no images."""
    return not {"run.json", "config.json"}.isdisjoint(names) and not {"manifest", "predictions"}.isdisjoint(folders)


@dataclass(frozen=True)
class Pick:
    """Which files of a place are its images: by glob patterns, else by their suffix.

    `*` also stands for `/`. A file without a suffix is one if its first bytes announce an image. In a bucket, where
    each look is a request, it is one unless its name is a well-known one of other files: the decoder will say.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __call__(self, relatives: Iterable[str]) -> list[bool]:
        """Whether each path is picked, going by the paths alone."""
        included, excluded = _pattern(self.include), _pattern(self.exclude)
        return [
            bool(included.match(path) if self.include else _may_be_image(path))
            and not path.endswith("/")
            and not (self.exclude and excluded.match(path))
            for path in relatives
        ]

    def of_files(self, listed: pa.Table) -> list[bool]:
        """Whether each of `FILES` is picked."""
        picked = self(listed["relative"].to_pylist())
        if not self.include:
            for i, relative in enumerate(listed["relative"].to_pylist()):
                if picked[i] and not _suffix(relative):
                    picked[i] = _begins_as_image(listed["uri"][i].as_py())
        return picked


def _pattern(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for glob in globs))


def _suffix(relative: str) -> str:
    return os.path.splitext(relative)[1].lower()


def _may_be_image(relative: str) -> bool:
    suffix = _suffix(relative)
    return suffix in IMAGE_SUFFIXES if suffix else not _OTHERS.fullmatch(relative.rsplit("/", 1)[-1])


_OTHERS = re.compile(
    r"licen[cs]e|copying|copyright|notice|readme|authors|contributors|contributing|changelog|changes|history|news|todo|"
    r"install|version|citation|makefile|dockerfile|jenkinsfile|vagrantfile|procfile|codeowners|checksums?|manifest|"
    r"(md5|sha1|sha224|sha256|sha384|sha512)(sums?)?|_success|_lock|_(started|committed)_\d+|_(common_)?metadata|_temporary",
    re.IGNORECASE,
)
"""Names without a suffix that projects and data frameworks give to what is no image."""

_BYTES_TO_SNIFF = 512


def _begins_as_image(uri: str) -> bool:
    """Whether a local file announces an image, or may not be looked at, which will be its error; True for objects."""
    from deepfake_ray.images.formats.containers import sniff  # loads the decoders, which most listings do without

    if not files.is_local(uri):
        return True
    try:
        descriptor = files.open_regular(uri)
    except PermissionError:
        return True
    except OSError:
        return False
    try:
        return sniff(os.read(descriptor, _BYTES_TO_SNIFF)) is not None
    except OSError:
        return True
    finally:
        os.close(descriptor)
