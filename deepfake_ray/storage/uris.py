"""The one spelling of each place that a table names: what is spelled alike is the same image."""

import posixpath

import pyarrow as pa
import pyarrow.compute as pc

from deepfake_ray.errors import UserError
from deepfake_ray.storage import files

_SCHEME = r"^(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+)://"
_LOCAL = r"^(?i:file://)|^/"
_NOT_NORMAL = r"/\.{0,2}(/|$)"
"""Of an absolute path: `//`, `/./`, `/../`, or a slash at its end."""
_WINDOWS = r"^[a-zA-Z]:[\\/]"


def refuse_unread(uris: pa.ChunkedArray, place: str, *, local: bool) -> None:
    """Refuse places that are not read, and `local` ones where they are not allowed.

    Raises:
        UserError: names the first.
    """
    schemes = pc.struct_field(pc.extract_regex(uris, _SCHEME), "scheme")
    for scheme in pc.unique(schemes).drop_null().to_pylist():
        if scheme.lower() not in files.SCHEMES:
            uri = uris.filter(pc.equal(schemes, scheme))[0].as_py()
            remedy = "write s3://" if scheme.lower() in ("s3a", "s3n") else "copy the images to one of these"
            raise UserError(
                f"A table must name local paths or {', '.join(f'{name}://' for name in files.SCHEMES)}: {place} has "
                f"{uri!r}, and {scheme}:// is not read; {remedy}."
            )
    found = uris.filter(pc.match_substring_regex(uris, _WINDOWS))
    if len(found):
        raise UserError(
            f"A table must name places as this machine sees them: {place} has the Windows path {found[0].as_py()!r}; "
            "write paths with slashes, relative to the table or from / on."
        )
    found = pa.chunked_array([], pa.string()) if local else uris.filter(pc.match_substring_regex(uris, _LOCAL))
    if len(found):
        raise UserError(
            f"A table in a bucket must not name files of the machine that reads it: {place} has {found[0].as_py()!r}; "
            "name URIs, or add --shared-storage if every machine mounts those files."
        )


def normalise_uris(uris: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """The one spelling of each place: `./x.png`, `a//x.png`, `b/../x.png` and `file://` become absolute paths.

    Keys of a bucket stay as they are, dots and slashes included; a relative one is below `folder`.

    Raises:
        UserError: one is empty, or outside of the bucket.
    """
    is_plain = pc.and_(pc.starts_with(uris, "/"), pc.invert(pc.match_substring_regex(uris, _NOT_NORMAL)))
    if pc.all(is_plain, skip_nulls=False).as_py():
        return uris
    return pa.chunked_array([pa.array([_normalised(uri, folder) for uri in uris.to_pylist()], pa.string())])


def _normalised(uri: str | None, folder: str) -> str:
    if not uri:
        raise UserError(f"A table of images must name a uri in each row: one in {folder} is empty; remove it.")
    scheme = files.scheme_of(uri)
    if scheme == "file" or uri.startswith("/"):
        return files.absolute(uri)
    if scheme:
        return f"{scheme}{uri[len(scheme) :]}"
    if files.is_local(folder):
        return files.absolute(files.join(folder, uri))
    relative = posixpath.normpath(uri)
    bucket, key = files.split_uri(folder)
    while relative.startswith("../"):
        if not key:
            raise UserError(f"A table in a bucket must name places in it: one in {folder} has {uri!r}; mend it.")
        key, relative = key.rpartition("/")[0], relative[3:]
    return files.join(bucket, *([key] if key else []), relative)
