"""The one spelling of each place that a table names: what is spelled alike is the same image."""

import posixpath

import pyarrow as pa
import pyarrow.compute as pc

from deepfake_ray import storage
from deepfake_ray.errors import UserError

_LOCAL = r"^(?i:file://)|^/"
_NOT_NORMAL = r"(^|/)\.{0,2}(/|$)|^(?i:file):"


def refuse_local(uris: pa.ChunkedArray, place: str) -> None:
    """Refuse local paths in a table that does not lie on this machine.

    Raises:
        UserError: names the first.
    """
    local = uris.filter(pc.match_substring_regex(uris, _LOCAL))
    if len(local):
        raise UserError(
            f"A table in a bucket must not name files of the machine that reads it: {place} has {local[0].as_py()!r}; "
            "name URIs, or add --shared-storage if every machine mounts those files."
        )


def normalised(uris: pa.ChunkedArray, folder: str = "/") -> pa.ChunkedArray:
    """The one spelling of each place: `./x.png`, `a//x.png`, `b/../x.png` and `file://` become absolute paths.

    Keys of a bucket stay as they are, dots and slashes included; a relative one is below `folder`.

    Raises:
        UserError: one is empty, or of a scheme that is not read.
    """
    schemes = pc.struct_field(pc.extract_regex(uris, r"^(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+)://"), "scheme")
    for scheme in pc.unique(schemes).drop_null().to_pylist():
        if scheme.lower() not in storage.SCHEMES:
            uri = uris.filter(pc.equal(schemes, scheme))[0].as_py()
            hint = "write s3:// for s3a:// and s3n://" if scheme.lower() in ("s3a", "s3n") else "copy the images there"
            raise UserError(
                f"A place is a local path or begins with {', '.join(f'{name}://' for name in storage.SCHEMES)}: a "
                f"table names {uri!r}; {scheme}:// is not read; {hint}."
            )
    is_odd = pc.match_substring_regex(uris, _NOT_NORMAL)
    is_plain = pc.and_(pc.starts_with(uris, "/"), pc.invert(is_odd))
    if pc.all(is_plain, skip_nulls=False).as_py():
        return uris
    return pa.chunked_array([pa.array([_absolute_in(folder, uri) for uri in uris.to_pylist()], pa.string())])


def _absolute_in(folder: str, uri: str | None) -> str:
    if not uri:
        raise UserError(f"A table of images must name a uri in each row: one in {folder} is empty; remove it.")
    scheme = storage.scheme_of(uri)
    if scheme == "file" or uri.startswith("/"):
        return storage.absolute(uri)
    if scheme:
        return f"{scheme}{uri[len(scheme) :]}"
    if storage.is_local(folder):
        return storage.absolute(storage.join(folder, uri))
    relative = posixpath.normpath(uri)
    bucket, key = storage.split_uri(folder)
    while relative.startswith("../"):
        if not key:
            raise UserError(
                f"A table in a bucket must name places in it: {folder} has {uri!r}, which is outside; mend it."
            )
        key, relative = key.rpartition("/")[0], relative[3:]
    return storage.join(bucket, *([key] if key else []), relative)
