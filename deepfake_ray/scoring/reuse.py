"""Scores of an earlier run, for images that are the same still: by what the listing says, else by their bytes.

They travel as a SQLite file, some 170 bytes an image, so that neither building nor asking it needs much memory.
"""

import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from datetime import datetime
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from deepfake_ray import schema
from deepfake_ray.data import manifest
from deepfake_ray.errors import UserError
from deepfake_ray.images.loading import Loaded
from deepfake_ray.models.scores import require_same_precision
from deepfake_ray.models.spec import Spec
from deepfake_ray.storage import files

FILE = "known.sqlite"
_FACTS = ("sha256", "num_bytes", "format", "width", "height", "jpeg_quality", "logit")


def build(earlier: str, model: Spec, precision: str, place: str, *, num_crops: int = 1) -> int:
    """Write the SQLite file of an earlier run's scores; returns how many there are.

    Args:
        earlier: OUTPUT of a scoring run, or its `predictions`. Beside `predictions` the `manifest` is looked for,
            whose etags, or sizes and times, say what has not changed; without it only the bytes tell.
        model: only scores of this model count.
        precision: that this run computes in; a logit of another is another score.
        place: where the file goes.
        num_crops: of this run; a mean over another number of crops is another score.

    Raises:
        UserError: no predictions there, or of another number of crops, or this model's in another precision.
    """
    earlier = files.absolute(earlier)
    output = earlier.removesuffix("/predictions")
    predictions = files.join(output, "predictions")
    if not files.exists(predictions):
        raise UserError(f"skip-known must name the output of a scoring run: {earlier} has no predictions/; check it.")
    run = files.join(output, "run.json")
    about = files.read_json(run) if files.exists(run) else {}
    crops = about.get("config", {}).get("crops", 1)
    if crops != num_crops:
        raise UserError(
            f"skip-known must name scores of as many crops: {earlier} has those of {crops}, this run has --crops "
            f"{num_crops}; set it to {crops}, or leave --skip-known out."
        )
    if model.made(about.get("model_id", "")):
        require_same_precision(
            f"skip-known must name scores of the same precision: {earlier}", about.get("precision"), precision
        )
    with files.new_file(place) as path:
        database = sqlite3.connect(path)
        # A crash leaves nothing to repair: the file appears when it is whole.
        database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        database.execute("CREATE TABLE versions (row INTEGER PRIMARY KEY, version BLOB)")
        database.executemany("INSERT INTO versions VALUES (?, ?)", _versions(files.join(output, "manifest")))
        database.execute(f"CREATE TABLE scores (row INTEGER PRIMARY KEY, {', '.join(_FACTS)})")
        places = ", ".join("?" * (1 + len(_FACTS)))
        database.executemany(
            f"INSERT INTO scores VALUES ({places})", _scores(predictions, model.model_id_in(precision))
        )
        database.execute(
            f"CREATE TABLE known AS SELECT version, {', '.join(_FACTS)} FROM scores LEFT JOIN versions USING (row)"
        )
        database.executescript(
            "DROP TABLE versions; DROP TABLE scores; CREATE INDEX by_version ON known (version); "
            "CREATE INDEX by_sha256 ON known (sha256);"
        )
        (number,) = database.execute("SELECT count(*) FROM known").fetchone()
        database.commit()
        database.execute("VACUUM")
        database.close()
    return int(number)


def _versions(place: str) -> Iterator[tuple[int, bytes]]:
    if not files.exists(place):
        return
    for rows in manifest.read_columns(place, ["row", "uri", "etag", "num_bytes", "mtime"]):
        for row, *facts in zip(*rows.to_pydict().values(), strict=True):
            version = version_of(*facts)
            if version is not None:
                yield row, version


def version_of(uri: str, etag: str | None, num_bytes: int | None, mtime: datetime | None) -> bytes | None:
    """Names an image and its state, as far as the listing tells; None if it does not."""
    if etag is not None:
        state = etag
    elif num_bytes is not None and mtime is not None:
        state = f"{num_bytes} {mtime.timestamp():.6f}"
    else:
        return None
    return blake2b(f"{uri}\0{state}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _scores(place: str, model_id: str) -> Iterator[tuple[object, ...]]:
    fs, path = files.filesystem(place)
    data = pads.dataset(path, filesystem=fs, format="parquet")
    wanted = (pc.field("status") == schema.OK) & (pc.field("model_id") == model_id)
    columns = ["row", *_FACTS]
    for batch in data.to_batches(columns=columns, filter=wanted, batch_readahead=1, fragment_readahead=1):
        for row, sha256, *facts in zip(*batch.to_pydict().values(), strict=True):
            yield row, bytes.fromhex(sha256), *facts


class Known:
    """The scores of a file that `build` wrote. May be asked by several threads."""

    def __init__(self, place: str):
        with tempfile.TemporaryDirectory() as folder:
            # An open file needs no name: nothing stays behind, however the process ends.
            path = files.local_copy(place, folder)
            self._database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)
            self._ask("rowid", -1)  # opens the file
        self._lock = threading.Lock()

    def by_sha256(self, sha256: str) -> Loaded | None:
        """What is known of the bytes with this hash."""
        with self._lock:
            return self._ask("sha256", bytes.fromhex(sha256))

    def by_version(self, rows: pa.Table) -> dict[int, Loaded]:
        """Of some rows of a manifest, those whose image is known and has not changed: position -> what is known."""
        columns = (rows[name].to_pylist() for name in ("uri", "etag", "num_bytes", "mtime"))
        found = {}
        for position, facts in enumerate(zip(*columns, strict=True)):
            version = version_of(*facts)
            known = None if version is None else self._ask("version", version)
            if known is not None:
                found[position] = known
        return found

    def _ask(self, column: str, value: object) -> Loaded | None:
        query = f"SELECT {', '.join(_FACTS)} FROM known WHERE {column} = ? LIMIT 1"
        row = self._database.execute(query, (value,)).fetchone()
        if row is None:
            return None
        sha256, *facts = row
        return Loaded(sha256=sha256.hex(), **dict(zip(_FACTS[1:], facts, strict=True)))
