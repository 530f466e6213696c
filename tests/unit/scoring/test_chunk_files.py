"""From the files of chunks to those of predictions/, whatever is lost, repeated or scored again."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_ray import schema
from deepfake_ray.data.manifest import Chunk
from deepfake_ray.errors import JobError
from deepfake_ray.scoring import chunk_files
from deepfake_ray.scoring.chunk_files import Layout
from deepfake_ray.scoring.spec import chunk_file

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Later:
    """Tasks that are done when they are waited for."""

    def __init__(self):
        self.started = []

    def start(self, function, *arguments):
        self.started.append((function, arguments))

    def wait(self):
        for function, arguments in self.started:
            function(*arguments)


def chunks_of(sizes):
    return [Chunk(index, "manifest/part-00000.parquet", 0, 0, size) for index, size in enumerate(sizes)]


def rows_of(chunk, chunks, run_id, codes=None, degradations=()):
    """What a scorer writes: `codes` by row of the manifest, the others are scored."""
    first = sum(one.num_rows for one in chunks[: chunk.index])
    found = []
    for row in range(first, first + chunk.num_rows):
        for name in degradations or [None]:
            code = (codes or {}).get(row)
            common = {"row": row, "uri": f"/{row}.jpg", "model_id": "m", "run_id": run_id, "scored_at": NOW}
            scored = {"status": "ok", "logit": float(row)} if code is None else {"status": "error", "error_code": code}
            found.append(common | scored | {"degradation": name})
    wanted = schema.DEGRADED if degradations else schema.PREDICTIONS
    return pa.Table.from_pylist(found, schema=wanted)


def write(layout, chunk, table):
    file = chunk_file(layout.chunk_folder, chunk.index)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def read(output):
    files = sorted((output / "predictions").iterdir())
    return [pq.read_table(file) for file in files]


def scored(output, chunks, run_id, codes=None, degradations=()):
    """Score what is left, with those errors; returns the indices."""
    layout = Layout(str(output), chunks, Later())
    left = layout.chunks_left()
    for chunk in left:
        write(layout, chunk, rows_of(chunk, chunks, run_id, codes, degradations))
        layout.written(chunk.index)
    layout.finish()
    return [chunk.index for chunk in left]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(chunk_files, "ROWS_PER_PART", 10)
    monkeypatch.setattr(chunk_files, "ROWS_PER_GROUP", 4)


@pytest.mark.parametrize("degradations", [(), ("blur", "jpeg")])
def test_merged_parts_with_images_that_the_storage_failed_to_give_are_scored_again(tmp_path, degradations):
    """README promises it; parts that were merged were passed over."""
    chunks = chunks_of([4, 4, 4, 4, 4, 2])  # parts: 0 1 | 2 3 | 4 5
    codes = {5: "timeout", 8: "truncated", 15: "forbidden", 16: "storage_error", 21: "not_found"}
    assert scored(tmp_path, chunks, "first", codes, degradations) == [0, 1, 2, 3, 4, 5]
    before = read(tmp_path)
    assert [len(part) for part in before] == [n * max(1, len(degradations)) for n in (8, 8, 6)]
    first_file = tmp_path / "predictions" / "part-00000.parquet"

    # 15 is given now; 16 fails in another way; 17 was scored and is gone by now, 8 and 21 are not asked for.
    again = {5: "timeout", 16: "truncated", 17: "not_found", 8: "not_found"}
    assert scored(tmp_path, chunks, "second", again, degradations) == [1, 3, 4]
    after = pa.concat_tables(read(tmp_path))
    assert after.schema.equals(before[0].schema, check_metadata=True)
    times = max(1, len(degradations))
    assert after["row"].to_pylist() == [row for row in range(22) for _ in range(times)]
    by_row = {row["row"]: (row["run_id"], row["error_code"], row["logit"]) for row in after.to_pylist()}
    assert by_row.pop(5) == ("second", "timeout", None)
    assert by_row.pop(15) == ("second", None, 15.0)
    assert by_row.pop(16) == ("second", "truncated", None)
    assert {row: found[1] for row, found in by_row.items() if found[1]} == {8: "truncated", 21: "not_found"}
    assert {found[0] for found in by_row.values()} == {"first"}

    third = first_file.stat().st_mtime_ns, (tmp_path / "predictions" / "part-00001.parquet").stat().st_mtime_ns
    assert scored(tmp_path, chunks, "third", {}, degradations) == [1]
    assert first_file.stat().st_mtime_ns > third[0]
    assert (tmp_path / "predictions" / "part-00001.parquet").stat().st_mtime_ns == third[1]
    assert scored(tmp_path, chunks, "fourth", {}, degradations) == []


def test_a_part_of_other_images_is_not_written(tmp_path):
    chunks = chunks_of([4, 4])
    scored(tmp_path, chunks, "first", {5: "timeout"})
    layout = Layout(str(tmp_path), chunks, Later())
    (chunk,) = layout.chunks_left()
    rows = rows_of(chunk, chunks, "second")
    write(layout, chunk, rows.set_column(1, schema.PREDICTIONS.field("uri"), pa.array(["/x.jpg"] * 4)))
    layout.written(1)
    before = read(tmp_path)
    with pytest.raises(JobError, match=r"chunk-0000001\.parquet has other images than its part"):
        layout.finish()
    assert read(tmp_path) == before
    with pytest.raises(JobError, match=r"part-00000\.parquet has 8 rows, of 7 images; it was changed by others"):
        Layout(str(tmp_path), chunks_of([4, 3])).chunks_left()


def test_files_of_a_version_with_fewer_columns_are_taken_over(tmp_path):
    """An unfinished output, some of whose chunks an older version scored, and a part that it merged."""
    chunks = chunks_of([4, 4, 4])
    layout = Layout(str(tmp_path), chunks, Later())
    layout.chunks_left()
    for index in (0, 1, 2):
        write(layout, chunks[index], rows_of(chunks[index], chunks, "old", {1: "timeout"}).drop(["threshold_logit"]))
    assert scored(tmp_path, chunks, "new", {9: "timeout"}) == [0]
    rows = rows_of(chunks[0], chunks, "old", {2: "timeout"})
    old = pa.concat_tables([rows, rows_of(chunks[1], chunks, "old")]).drop(["threshold_logit"])
    pq.write_table(old, tmp_path / "predictions" / "part-00000.parquet")
    assert scored(tmp_path, chunks, "newer") == [0]
    assert [part.schema for part in read(tmp_path)] == [schema.PREDICTIONS] * 2
    assert pa.concat_tables(read(tmp_path))["run_id"].to_pylist() == ["old"] * 2 + ["newer"] + ["old"] * 9


@st.composite
def histories(draw):
    """Sizes of chunks; and of each of some drivers, which chunks it wrote in which order, with repetitions, at which
    of them it was killed, and which rows had errors of the storage.
    """
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    num_rows = sum(sizes)
    drivers = draw(
        st.lists(
            st.tuples(
                st.randoms(use_true_random=False),
                st.integers(0, 2 * len(sizes)),
                st.sets(st.integers(0, num_rows - 1), max_size=3),
                st.booleans(),
            ),
            max_size=4,
        )
    )
    return sizes, drivers


@settings(max_examples=25)  # each writes dozens of files
@given(histories())
def test_no_row_is_lost_or_doubled_whatever_happens(tmp_path_factory, history):
    """Chunks come in any order, twice, or not at all; drivers are killed, before or after their parts were written."""
    sizes, drivers = history
    output = tmp_path_factory.mktemp("o")
    chunks = chunks_of(sizes)
    for number, (random, killed_at, failing, parts_were_written) in enumerate(drivers):
        tasks = Later()
        layout = Layout(str(output), chunks, tasks)
        left = layout.chunks_left()
        deliveries = [*left, *random.choices(left, k=3)] if left else []
        random.shuffle(deliveries)
        for chunk in deliveries[:killed_at]:
            write(layout, chunk, rows_of(chunk, chunks, str(number), dict.fromkeys(failing, "timeout")))
            layout.written(chunk.index)
        if parts_were_written:
            tasks.wait()
        names = [task[1][-1] for task in tasks.started]
        assert len(names) == len(set(names)), "each part is written once"
    for number in range(2):
        scored(output, chunks, f"last {number}")
    rows = pa.concat_tables(read(output))
    assert rows["row"].to_pylist() == list(range(sum(sizes)))
    assert np.array_equal(rows["logit"].to_numpy(), np.arange(sum(sizes)))
    assert not (output / "chunks").exists()
