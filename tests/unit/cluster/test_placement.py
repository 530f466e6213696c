import pytest

from deepfake_ray.cluster.placement import (
    DATA_LABEL,
    ClusterTooSmallError,
    Node,
    plan_reading,
    plan_scoring,
    plan_training,
)
from deepfake_ray.errors import UserError


@pytest.mark.parametrize(
    ("cpus", "workers", "cpus_per_worker", "threads"),
    [
        (1, 1, 0.5, 1),
        (2, 1, 1, 2),
        (2, 2, 0.5, 1),
        (4, 2, 1, 2),
        (4, 3, 1, 1),
        (16, 1, 12, 16),
        (16, 4, 3, 4),
    ],
)
def test_training_on_cpus_always_leaves_some_for_the_data(cpus, workers, cpus_per_worker, threads):
    plan = plan_training([Node(cpus)], (workers, workers), "auto")
    assert (plan.num_workers, plan.cpus_per_worker, plan.torch_threads) == (workers, cpus_per_worker, threads)
    assert plan.data_cpus_per_worker > 0
    assert workers * (plan.cpus_per_worker + plan.data_cpus_per_worker) <= cpus


def test_training_default_is_one_worker_a_cpu_node_or_a_gpu():
    assert plan_training([Node(8), Node(8)], None, "auto").num_workers == 2
    plan = plan_training([Node(16, 4), Node(16, 4), Node(32)], None, "auto")
    assert (plan.num_workers, plan.use_gpu, plan.cpus_per_worker) == (8, True, 1)
    assert plan.data_cpus_per_worker == 7  # (64 - 8) / 8


@pytest.mark.parametrize(
    ("nodes", "least", "per_node"),
    [
        ([2.0], 1, 1),
        ([2.0, 2.0], 1, 1),
        ([4.0], 2, 2),
        ([4.0], 3, 3),
        ([16.0, 16.0], 3, 2),
        ([5.0], 2, 2),
        ([1.0], 1, 1),
    ],
)
def test_elastic_workers_never_fill_a_node(nodes, least, per_node):
    plan = plan_training([Node(cpus) for cpus in nodes], (least, 100), "auto")
    assert (plan.min_workers, plan.num_workers) == (least, 100)
    assert int(nodes[0] / plan.cpus_per_worker) == per_node  # so many would Ray put there
    assert plan.data_cpus_per_worker > 0
    assert per_node * (plan.cpus_per_worker + plan.data_cpus_per_worker) < nodes[0] + 1e-9


def test_elastic_workers_on_gpus_may_be_more_than_there_are_now():
    plan = plan_training([Node(16, 2), Node(16, 2)], (2, 8), "auto")
    assert (plan.min_workers, plan.num_workers, plan.cpus_per_worker) == (2, 8, 1)
    assert plan.data_cpus_per_worker == 7  # (32 - 4) / 4
    with pytest.raises(UserError, match="got 5, the cluster has 4"):
        plan_training([Node(16, 2), Node(16, 2)], (5, 8), "auto")


def test_gpu_node_with_few_cpus_still_decodes():
    plan = plan_training([Node(4, 4)], None, "auto")
    assert plan.cpus_per_worker == 0.5
    assert plan.data_cpus_per_worker == 0.5


def test_scoring_takes_every_cpu():
    plan = plan_scoring([Node(2)], None, "auto")
    assert (plan.use_gpu, plan.num_actors, plan.cpus_per_actor, plan.num_loaders) == (False, 2, 1, 0)
    assert plan_scoring([Node(16, 2)], None, "no").num_actors == 16
    assert plan_scoring([Node(0.5)], None, "auto").cpus_per_actor == 0.5


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # actors, CPUs for each, loaders, CPUs for each
        ([Node(16, 1)], (1, 1, 15, 1)),
        ([Node(16, 2), Node(8)], (2, 1, 22, 1)),
        ([Node(4, 4)], (4, 0.5, 2, 1)),
        ([Node(1, 1)] * 4, (4, 0.5, 4, 0.5)),  # two whole CPUs are left in all, and none on any node
    ],
)
def test_on_gpus_the_other_cpus_decode(nodes, expected):
    plan = plan_scoring(nodes, None, "auto")
    assert plan.use_gpu
    assert (plan.num_actors, plan.cpus_per_actor, plan.num_loaders, plan.cpus_per_loader) == expected


def test_labelled_nodes_alone_work_for_gpus():
    """Two GPU nodes and a small CPU node with the label: nothing is decoded beside the GPUs."""
    nodes = [Node(16, 2), Node(16, 2), Node(6, has_data_label=True)]
    plan = plan_scoring(nodes, None, "auto")
    assert (plan.num_actors, plan.num_loaders, plan.loader_label) == (4, 6, DATA_LABEL)
    training = plan_training(nodes, None, "auto")
    assert (training.num_workers, training.data_cpus_per_worker, training.data_label) == (4, 1, DATA_LABEL)
    assert plan_reading(nodes) == (6, DATA_LABEL)
    without = [Node(16, 2), Node(16, 2), Node(6)]
    plan = plan_scoring(without, None, "auto")
    assert (plan.num_loaders, plan.loader_label) == (14 + 14 + 6, {})
    assert plan_training(without, None, "auto").data_label == {}
    assert plan_reading(without) == (38, {})
    # Where no GPU is used, every node computes, and decodes what it computes.
    assert plan_scoring(nodes, None, "no").num_actors == 38
    assert plan_training([Node(8, has_data_label=True), Node(8)], None, "no").data_label == {}


@pytest.mark.parametrize(
    ("plan", "bundles"),
    [
        (lambda: plan_scoring([], None, "auto"), [{"CPU": 1}]),
        (lambda: plan_training([], None, "yes"), [{"CPU": 1, "GPU": 1}]),
        (lambda: plan_scoring([Node(8)], 3, "yes"), [{"GPU": 1}]),
        (lambda: plan_scoring([Node(8, 1)], 3, "yes"), [{"GPU": 1}] * 3),
        (lambda: plan_training([Node(8, 1)], (2, 4), "auto"), [{"GPU": 1}] * 2),
        (lambda: plan_scoring([Node(2)], 3, "no"), [{"CPU": 1}] * 3),
    ],
)
def test_what_is_missing_can_be_asked_of_an_autoscaler(plan, bundles):
    with pytest.raises(ClusterTooSmallError) as caught:
        plan()
    assert caught.value.bundles == bundles


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda: plan_training([Node(2)], (20, 20), "auto"), "20 workers on 1 nodes of 2 CPUs"),
        (
            lambda: plan_training([Node(8, 1)], (2, 2), "auto"),
            "must not exceed the GPUs: got 2, the cluster has 1",
        ),
        (lambda: plan_training([Node(8)], None, "yes"), "there is none; use --use-gpu auto"),
        (lambda: plan_scoring([Node(2)], 3, "auto"), "must not exceed the CPUs: got 3, the cluster has 2"),
        (lambda: plan_scoring([], None, "auto"), "needs a node with CPUs: the cluster has none"),
    ],
)
def test_what_does_not_fit_is_said(plan, message):
    with pytest.raises(UserError, match=message):
        plan()
