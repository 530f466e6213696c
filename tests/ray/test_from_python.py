"""The jobs as functions, and the same scores from `Detector`."""

import json

import pyarrow.parquet as pq
import pytest

import deepfake_ray
from deepfake_ray.errors import UserError

pytestmark = pytest.mark.ray


def test_jobs_are_functions_and_detector_gives_their_scores(trained, sample_folder, tmp_path):
    model, output = str(trained / "model"), tmp_path / "scores"
    run = deepfake_ray.score(images=str(sample_folder / "Test"), model=model, output=str(output), batch_size=16)
    assert run == json.loads((output / "run.json").read_text())
    rows = pq.read_table(output / "predictions").to_pylist()
    assert len(rows) == 80
    found = deepfake_ray.Detector(model, batch_size=16, precision=run["precision"])([row["uri"] for row in rows])
    of_the_run = {"row", "run_id", "scored_at"}
    for row, expected in zip(found, rows, strict=True):
        assert {name: row[name] for name in row.keys() - of_the_run} == {
            name: expected[name] for name in expected.keys() - of_the_run
        }
    metrics = deepfake_ray.evaluate(data=str(sample_folder), model=model, output=str(tmp_path / "evaluation"))
    assert metrics["num_scored"] == 80
    assert json.loads(json.dumps(metrics)) == json.loads((tmp_path / "evaluation" / "metrics.json").read_text())


@pytest.mark.parametrize("job", [deepfake_ray.train, deepfake_ray.evaluate])
def test_a_mistake_is_raised_before_ray_is_started(job, tmp_path):
    with pytest.raises(UserError, match="model must be a bundle|does not exist"):
        job(
            data=str(tmp_path / "nothing"),
            output=str(tmp_path / "o"),
            **({} if job is deepfake_ray.train else {"model": str(tmp_path)}),
        )
