"""Ray's private parts that take effect in a running Ray only."""

import pytest
import ray.train.torch
from ray.data import ExecutionResources
from ray.train import ScalingConfig

from deepfake_ray.cluster import ray_internals

pytestmark = pytest.mark.ray


def callbacks_of(trainer):
    made = trainer(lambda: None, scaling_config=ScalingConfig(num_workers=1))._create_default_callbacks()
    return {type(callback).__name__ for callback in made}


def test_a_training_without_a_dashboard_has_no_actors_that_it_has_no_use_for(ray_2_cpus, monkeypatch):
    assert not ray_internals.has_dashboard()
    all_of_them = callbacks_of(ray.train.torch.TorchTrainer)
    left_out = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert left_out < all_of_them
    assert callbacks_of(ray_internals.trainer_class()) == all_of_them - left_out
    monkeypatch.setattr(ray_internals, "has_dashboard", lambda: True)
    assert callbacks_of(ray_internals.trainer_class()) == all_of_them - {"DatasetsCallback"}


def test_the_fixed_cluster_is_all_there_is(ray_2_cpus):
    total = ray_internals.FixedCluster("any", keyword="argument").get_total_resources()
    assert isinstance(total, ExecutionResources)
    assert (total.cpu, total.gpu) == (2, 0)


def test_a_cluster_without_an_autoscaler_has_no_state_of_one(ray_2_cpus, capsys):
    assert ray_internals.autoscaler_state() is None
    assert capsys.readouterr().err == ""
