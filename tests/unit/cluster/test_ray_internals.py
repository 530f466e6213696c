"""Ray's private parts, without starting Ray: each is still there, and a job does without it where it is not."""

import inspect
import sys
import tomllib
from types import SimpleNamespace

import pytest
import ray
import ray.train.torch
from checkout import ROOT
from ray._private.node import Node
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators import actor_pool_map_operator
from ray.data._internal.stats import _StatsManager

from deepfake_ray import console
from deepfake_ray.cluster import autoscaling, ray_internals, session
from deepfake_ray.cluster.placement import ClusterTooSmallError
from deepfake_ray.cluster.ray_data import Callback, EndActors
from deepfake_ray.errors import UserError

STATISTICS = ("register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(console, "_said", set())


@pytest.fixture
def ray_data_as_before(monkeypatch):
    """Whatever a test replaces in Ray Data is put back."""
    monkeypatch.setattr(ray_internals, "_replaced", [])
    for name in STATISTICS:
        monkeypatch.setattr(_StatsManager, name, _StatsManager.__dict__[name])
    monkeypatch.setattr(streaming_executor, "create_cluster_autoscaler", object())
    for name in ("get_or_create_actor_location_tracker", "get_actor_locations"):
        monkeypatch.setattr(actor_pool_map_operator, name, object())


def test_the_version_is_the_pinned_one():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray[default,data,train]=={ray_internals.RAY_VERSION}" in dependencies


@pytest.mark.parametrize("start", [session.start_ray, lambda: session.ray_session().__enter__()])
def test_another_ray_is_a_mistake_of_the_user_before_anything_starts(start, monkeypatch):
    monkeypatch.setattr(ray, "__version__", "2.59.1")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("started"))
    with pytest.raises(UserError) as caught:
        start()
    assert str(caught.value) == (
        "Ray must be 2.60.0, the version that this project is tested with: got 2.59.1; "
        'pip install "ray[default,data,train]==2.60.0", on all nodes of a cluster.'
    )


def test_ray_data_is_kept_from_starting_actors(ray_data_as_before, capsys):
    ray_internals.start_no_helpers()
    assert capsys.readouterr().err == ""
    for name in STATISTICS:
        assert getattr(_StatsManager, name)("any", key=1) is None, "would ask for an actor, and start Ray"
    assert streaming_executor.create_cluster_autoscaler is ray_internals.FixedCluster
    tracker = actor_pool_map_operator.get_or_create_actor_location_tracker()
    assert tracker.update_actor_location.remote("actor", "node") is None
    assert actor_pool_map_operator.get_actor_locations(("actor",)) == {}


def test_what_was_kept_from_starting_is_taken_back(ray_data_as_before):
    """For a program that calls the jobs, and has work of its own for Ray Data."""
    owners = {_StatsManager: STATISTICS, streaming_executor: ["create_cluster_autoscaler"]}
    before = {(owner, name): inspect.getattr_static(owner, name) for owner, names in owners.items() for name in names}
    for _ in range(2):
        ray_internals.start_no_helpers()
    assert all(inspect.getattr_static(*place) is not value for place, value in before.items())
    ray_internals.start_helpers_again()
    assert all(inspect.getattr_static(*place) is value for place, value in before.items())


def test_the_fixed_cluster_is_asked_nothing_that_it_does_not_know():
    assert set(ClusterAutoscaler.__abstractmethods__) <= set(vars(ray_internals.FixedCluster))


def test_one_part_that_is_gone_is_said_once_and_costs_no_other(ray_data_as_before, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray.data._internal.stats", None)
    monkeypatch.delattr(actor_pool_map_operator, "get_actor_locations")
    ray_internals.start_no_helpers()
    ray_internals.start_no_helpers()
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: Ray Data's actor for statistics cannot be left out (ModuleNotFoundError")
    assert second.startswith("warning: Ray Data's actor for locations cannot be left out (AttributeError")
    assert first.endswith("it takes some memory and a second of the start")
    assert streaming_executor.create_cluster_autoscaler is ray_internals.FixedCluster
    assert not hasattr(actor_pool_map_operator, "get_actor_locations"), "set where nobody looks"


def test_the_node_can_end_its_helpers(monkeypatch, capsys):
    """What is left after a start: test_session.py::test_a_ray_of_the_jobs_own_has_no_processes_for_a_cluster."""
    for name in ("kill_log_monitor", "kill_monitor", "kill_dashboard"):
        assert "check_alive" in inspect.signature(getattr(Node, name)).parameters
    monkeypatch.setattr(ray._private.worker, "_global_node", None)
    ray_internals.end_helpers()
    assert capsys.readouterr().err.startswith("warning: Ray's helper processes cannot be ended (AttributeError")


def test_callbacks_have_all_that_ray_data_calls():
    """They are not derived from Ray's class, which would have to be imported to define them."""
    ours = {name for name, _ in inspect.getmembers(Callback, inspect.isfunction)}
    assert {name for name, _ in inspect.getmembers(ExecutionCallback, inspect.isfunction)} == ours


def test_tasks_and_actors_of_an_execution(capsys, monkeypatch):
    def operator(begun, ended, **more):
        return SimpleNamespace(metrics=SimpleNamespace(num_tasks_submitted=begun, num_tasks_finished=ended), **more)

    pool = SimpleNamespace(_actor_to_logical_id={"a": "1", "b": "2"})
    executor = SimpleNamespace(_topology=[operator(3, 2), operator(7, 0, _actor_pool=pool)])
    assert ray_internals.num_task_events(executor) == 12
    killed = []
    monkeypatch.setattr(ray, "kill", killed.append)
    end = EndActors()
    for _ in range(2):
        end.on_execution_step(executor)
    end.after_execution_succeeds(executor)
    assert killed == ["a", "b"]
    assert capsys.readouterr().err == ""
    other = SimpleNamespace()
    for _ in range(2):
        assert ray_internals.num_task_events(other) == 0
        assert list(ray_internals.actors_of(other)) == []
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_without_rays_word_on_a_dashboard_there_may_be_one(monkeypatch):
    assert inspect.isfunction(ray._private.worker.get_dashboard_url)
    monkeypatch.delattr(ray._private.worker, "get_dashboard_url")
    assert ray_internals.has_dashboard() is True


def test_a_trainer_with_other_parts_is_said(monkeypatch, capsys):
    assert ray_internals.trainer_class().__mro__[1] is ray.train.torch.TorchTrainer
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", type("TorchTrainer", (), {}))
    trainer = ray_internals.trainer_class()()
    assert "warning: Ray Train's trainer has other parts (AttributeError" in capsys.readouterr().err
    trainer.abort()


def test_notes_of_checkpoints_that_are_gone_delete_none(tmp_path, capsys):
    (tmp_path / "checkpoint_manager_snapshot.json").write_text('{"kept": ["checkpoint_1"]}')
    assert ray_internals.noted_checkpoints(str(tmp_path)) == '{"kept": ["checkpoint_1"]}'
    assert capsys.readouterr().err == ""
    assert ray_internals.noted_checkpoints(str(tmp_path / "elsewhere")) is None
    assert capsys.readouterr().err.rstrip().endswith("none is deleted")


def test_a_waiting_job_waits_on_where_the_autoscaler_does_not_answer_once(monkeypatch, capsys):
    """One look that failed ended a job that may have waited for hours, as the user's mistake."""
    nothing = SimpleNamespace(
        infeasible_cluster_resource_constraints=[], pending_instances=[1], pending_instance_requests=[],
        failed_instance_requests=[],
    )  # fmt: skip
    answers = iter([nothing, nothing, None, nothing])
    monkeypatch.setattr(autoscaling, "autoscaler_state", lambda: next(answers))
    monkeypatch.setattr(autoscaling, "cluster_nodes", lambda: [])
    monkeypatch.setattr(autoscaling, "request_resources", lambda **_: None)
    monkeypatch.setattr(autoscaling, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(autoscaling, "SECONDS_BETWEEN_LINES", 0.0)
    looks = []

    def plan(nodes):
        looks.append(nodes)
        if len(looks) < 5:
            raise ClusterTooSmallError("It takes a node.", [{"CPU": 1.0}])
        return "a plan"

    assert autoscaling.plan_with_autoscaler(plan) == "a plan"
    said = capsys.readouterr().err
    assert said.count("nodes that it is starting: 1") == 2
    assert said.count("it does not say what it is doing") == 1


def test_a_job_does_not_wait_for_an_autoscaler_that_cannot_be_asked(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray.core.generated.autoscaler_pb2", None)
    monkeypatch.setattr(autoscaling, "cluster_nodes", lambda: [])
    monkeypatch.setattr(autoscaling, "request_resources", lambda **_: pytest.fail("asked"))

    def plan(nodes):
        raise ClusterTooSmallError("It takes a node.", [{"CPU": 1.0}])

    with pytest.raises(ClusterTooSmallError, match=r"^It takes a node\.$"):
        autoscaling.plan_with_autoscaler(plan)
    assert "a job does not wait for nodes to be added" in capsys.readouterr().err
