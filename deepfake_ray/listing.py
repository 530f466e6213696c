"""What lies in a folder, under a bucket prefix, or is one file: page by page, in order."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from deepfake_ray import storage
from deepfake_ray.errors import UserError
from deepfake_ray.fetch import object_store

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".avifs", ".heic", ".heif", ".jp2", ".jxl", ".psd"),
    }
)


@dataclass(frozen=True)
class File:
    """One file or object, and what the store says of it."""

    relative: str
    """Its path below the place that was listed."""
    uri: str
    num_bytes: int
    etag: str | None
    mtime: datetime


def _list_local(root: str) -> Iterator[File]:
    """Depth first, names in order, so that the same folder always gives the same manifest."""
    stack = [""]
    while stack:
        relative = stack.pop()
        with os.scandir(os.path.join(root, relative)) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        folders = []
        for entry in found:
            path = os.path.join(relative, entry.name)
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                folders.append(path)
                continue
            try:
                stat = entry.stat()
            except FileNotFoundError:  # a dangling link: it is listed, and reading it will say not_found
                stat = entry.stat(follow_symlinks=False)
            mtime = datetime.fromtimestamp(stat.st_mtime, UTC)
            yield File(path, os.path.join(root, path), stat.st_size, None, mtime)
        stack.extend(reversed(folders))


def _list_remote(root: str) -> Iterator[File]:
    import obstore

    bucket, prefix = storage.split_uri(root)
    try:
        for page in obstore.list(object_store(bucket), prefix or None):
            for found in page:
                key = found["path"]
                relative = key[len(prefix) :].lstrip("/")
                if relative and not any(_is_hidden(part) for part in relative.split("/")):
                    yield File(relative, f"{bucket}/{key}", found["size"], found["e_tag"], found["last_modified"])
    except obstore.exceptions.BaseError as error:
        raise UserError(
            f"The images must be listable: {root} is not ({str(error).splitlines()[0][:200]}); check the bucket's "
            "name, AWS_ENDPOINT_URL and the credentials in the environment."
        ) from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _may_be_image(relative: str) -> bool:
    """By its suffix; a name without one may be anything, so the decoder will say."""
    suffix = os.path.splitext(relative)[1].lower()
    return not suffix or suffix in IMAGE_SUFFIXES


def images_in(place: str, limit: int | None) -> tuple[list[File], list[str]]:
    """The files of a place that may be images, at most `limit`, and the URIs of the others met on the way.

    Raises:
        UserError: no such place, or no image in it.
    """
    if not storage.exists(place):
        raise UserError(f"The images must be there: {place} does not exist; check the path.")
    if storage.is_local(place):
        if os.path.isfile(place):
            stat = os.stat(place)
            mtime = datetime.fromtimestamp(stat.st_mtime, UTC)
            return [File(os.path.basename(place), place, stat.st_size, None, mtime)], []
        listing = _list_local(place)
    else:
        listing = _list_remote(place)
    images: list[File] = []
    others: list[str] = []
    for file in listing:
        if not _may_be_image(file.relative):
            others.append(file.uri)
            continue
        images.append(file)
        if limit is not None and len(images) >= limit:
            break
    if not images:
        raise UserError(
            f"There must be an image in {place}: found none among {len(others)} files; images are known by their "
            f"suffix ({', '.join(sorted(IMAGE_SUFFIXES)[:6])} ...) or have none."
        )
    return images, others
