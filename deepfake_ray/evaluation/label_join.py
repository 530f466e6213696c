"""Predictions of an earlier scoring run, joined to labels: what an evaluation without scoring starts from."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from deepfake_ray import schema
from deepfake_ray.errors import UserError
from deepfake_ray.storage import files, outputs
from deepfake_ray.storage.uris import normalise_uris

LABEL_COLUMNS = {"true_label": "label", "split": "split", "source": "source", "group": "group"}
"""Column of the predictions -> of the labels."""


def scoring_run(place: str) -> dict[str, Any]:
    """`run.json` of a scoring output.

    Raises:
        UserError: there is none, or the run is not finished.
    """
    uri = files.join(files.absolute(place), "run.json")
    try:
        run: dict[str, Any] = files.read_json(uri)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"predictions must be the output of jobs/score.py: {place} has no run.json; give its --output."
        ) from error
    if not outputs.is_finished(files.absolute(place)):
        raise UserError(f"predictions must be finished: {place} is not; add --resume to its jobs/score.py.")
    return run


def join(place: str, labels: pa.Table, output: str) -> dict[str, int]:
    """Write the predictions of labelled images to OUTPUT/predictions, with their labels.

    Args:
        place: output of a scoring run.
        labels: `schema.MANIFEST`, each row with a label.
        output: of the evaluation.

    Returns:
        num_images, num_errors (of these), num_without_prediction (labelled images that were not scored) and
        num_without_label.

    Raises:
        UserError: no prediction is for a labelled image.
    """
    fs, path = files.filesystem(files.join(files.absolute(place), "predictions"))
    # With its schema, an output of an earlier version has the columns that it lacks, as nulls.
    data = pads.dataset(path, schema=schema.PREDICTIONS, filesystem=fs, format="parquet")
    uris = labels["uri"].combine_chunks()
    matched = np.zeros(len(labels), bool)
    num_images = num_errors = num_rows = 0
    with (
        files.new_file(files.join(output, "predictions", "part-00000.parquet")) as file,
        pq.ParquetWriter(file, schema.PREDICTIONS, compression="zstd") as writer,
    ):
        for batch in data.to_batches():
            num_rows += len(batch)
            table = pa.Table.from_batches([batch])
            # Earlier versions wrote local paths as their table spelled them.
            position = pc.index_in(normalise_uris(table["uri"], "/"), value_set=uris).combine_chunks()
            table = table.filter(position.is_valid())
            position = position.drop_null()
            matched[position.to_numpy()] = True
            for column, label in LABEL_COLUMNS.items():
                table = table.set_column(
                    table.column_names.index(column), schema.PREDICTIONS.field(column), labels[label].take(position)
                )
            num_images += len(table)
            num_errors += pc.sum(pc.equal(table["status"], schema.ERROR)).as_py() or 0
            writer.write_table(table.cast(schema.PREDICTIONS))
    if not num_images:
        raise UserError(
            f"predictions and labels must be of the same images: no uri is in both; {place} has such as "
            f"{data.head(1, columns=['uri'])['uri'].to_pylist()}, the labels {uris.slice(0, 1).to_pylist()}."
        )
    return {
        "num_images": num_images,
        "num_errors": num_errors,
        "num_without_prediction": int(np.sum(~matched)),
        "num_without_label": num_rows - num_images,
    }
