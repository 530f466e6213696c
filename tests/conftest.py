import os

import hypothesis
import pytest

# As the jobs do where they start Ray: else tests spend their time starting processes.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
# A lost node is noticed after some seconds, not after half a minute.
os.environ.update({"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"})
# All clusters of the tests ask for this token, and all jobs have it.
os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4})
# The same examples in each run: what fails in CI fails here. No deadline: this machine may be busy.
hypothesis.settings.register_profile("repeatable", derandomize=True, max_examples=50, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def sample_folder(tmp_path_factory):
    from deepfake_ray.images import sample

    folder = tmp_path_factory.mktemp("sample")
    sample.generate(str(folder), num_train=400, num_test=80)
    return folder


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A bundle of a CNN with random weights, for images of 32 px."""
    import torch

    from deepfake_ray.images.preprocessing import Preparation
    from deepfake_ray.models import bundle, networks
    from deepfake_ray.models.scores import threshold_at
    from deepfake_ray.models.spec import Spec

    place = str(tmp_path_factory.mktemp("bundle"))
    torch.manual_seed(0)
    arrays = {key: value.numpy() for key, value in networks.build("cnn").state_dict().items()}
    numbers = {"default": 0.5, "balanced": 0.5, "fpr_1": 0.9, "fpr_5": 0.8}
    thresholds = {name: threshold_at(number, 1.0) for name, number in numbers.items()}
    spec = Spec(arch="cnn", preparation=Preparation(image_size=32), temperature=1.0, thresholds=thresholds)
    bundle.save(place, spec, arrays)
    return place


@pytest.fixture(scope="session")
def ray_2_cpus():
    """One local Ray of 2 CPUs for the whole session: the smallest that must not deadlock."""
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def trained(ray_2_cpus, sample_folder, tmp_path_factory):
    """The output of a short training run on the sample."""
    from deepfake_ray.config import TrainConfig
    from deepfake_ray.drivers.train import train

    output = tmp_path_factory.mktemp("trained") / "run"
    train(TrainConfig(data=str(sample_folder), output=str(output), epochs=2, global_batch_size=64))
    return output
