"""The hash that names a set of images."""

import hashlib

import numpy as np
import pyarrow as pa

COLUMNS = ("row", "uri", "label", "split", "source", "group", "num_bytes")


class Digest:
    """A hash over `COLUMNS` of a manifest's rows."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, group: pa.Table) -> None:
        """Add a row group: tables must be cut into them alike to have the same hash."""
        # Copied, because a slice is written with bytes of its neighbours as padding.
        columns = group.select(COLUMNS).take(pa.array(np.arange(len(group)))).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, columns.schema) as writer:
            writer.write_table(columns)
        self._digest.update(sink.getvalue())

    def hexdigest(self) -> str:
        """Of what was added so far."""
        return self._digest.hexdigest()
