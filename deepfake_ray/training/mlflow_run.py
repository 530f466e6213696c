"""MLflow: the only module that knows it. An optional extra."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from deepfake_ray.errors import UserError

EXPERIMENT = "deepfake_ray"
"""Used where MLFLOW_EXPERIMENT_NAME names no other."""
LAST_METRIC = "train/num_val_errors"
"""The last of an epoch: where it is there, all are."""
_OUTPUT_TAG = "deepfake_ray.output"
_LONGEST_PARAMETER = 500


class MlflowRun:
    """The MLflow run of one output; a resumed training goes on with it, and repeats no step.

    Raises:
        UserError: MLflow is not installed, or the place cannot be reached.
    """

    def __init__(self, uri: str, output: str, settings: Mapping[str, Any], *, resuming: bool):
        # Its own default, seven tries with growing pauses, says nothing for four minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        try:
            import mlflow
        except ImportError as error:
            raise UserError(f"mlflow-uri needs MLflow ({error}); pip install -e '.[mlflow]'.") from error
        self._failure = mlflow.exceptions.MlflowException
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            self._id, self._num_logged = (resuming and self._find(output)) or (self._create(output, settings), 0)
        except (self._failure, OSError) as error:
            raise UserError(f"mlflow-uri must be a store that can be written: {uri}: {error}") from error

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self._client.create_experiment(name))

    def _find(self, output: str) -> tuple[str, int] | None:
        """The id of the output's last run, and how many epochs were logged to it."""
        quote = '"' if "'" in output else "'"
        of_output = f"tags.`{_OUTPUT_TAG}` = {quote}{output}{quote}"
        for run in self._client.search_runs([self._experiment()], filter_string=of_output, max_results=1):
            self._client.update_run(run.info.run_id, status="RUNNING")
            logged = self._client.get_metric_history(run.info.run_id, LAST_METRIC)
            return run.info.run_id, max((metric.step for metric in logged), default=0)
        return None

    def _create(self, output: str, settings: Mapping[str, Any]) -> str:
        name = os.path.basename(output.rstrip("/"))
        run = self._client.create_run(self._experiment(), tags={_OUTPUT_TAG: output}, run_name=name)
        for key, value in settings.items():
            self._client.log_param(run.info.run_id, key, str(value)[:_LONGEST_PARAMETER])
        return str(run.info.run_id)

    def log(self, epochs: Sequence[Mapping[str, float]]) -> str:
        """Metrics of all epochs so far; those that were logged before are passed over. Returns what went wrong."""
        try:
            for number, metrics in enumerate(epochs[self._num_logged :], self._num_logged + 1):
                for name, value in metrics.items():
                    self._client.log_metric(self._id, name, value, step=number)
                self._num_logged = number
        except (self._failure, OSError) as error:
            return str(error)
        return ""

    def end(self, *, finished: bool) -> None:
        """Close the run. What MLflow cannot be told of any more is left: the training has its result."""
        try:
            self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")
        except (self._failure, OSError):
            return
