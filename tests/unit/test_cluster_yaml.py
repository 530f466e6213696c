"""cluster.yaml: by Ray's own schema, the node types as parameters of EC2's API, and its versions. All offline."""

import re
import tomllib

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from checkout import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config

from deepfake_ray.cluster.placement import DATA_LABEL

CONFIG = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it():
    validate_config(prepare_config(CONFIG))
    with pytest.raises(Exception, match="head_nod_type"):
        validate_config(prepare_config({**CONFIG, "head_nod_type": "head"}))


def run_instances(node_config):
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return ParamValidator().validate({**node_config, "MinCount": 1, "MaxCount": 1}, shape)


@pytest.mark.parametrize("name", CONFIG["available_node_types"])
def test_ec2_knows_the_parameters(name):
    node = CONFIG["available_node_types"][name]["node_config"]
    assert not run_instances(node).has_errors(), run_instances(node).generate_report()
    assert run_instances({**node, "InstanceTyp": "m6i.large"}).has_errors()


def test_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (command,) = CONFIG["setup_commands"]
    assert re.findall(r'"([^"]+)"', command) == project["dependencies"]
    ray = next(one for one in project["dependencies"] if one.startswith("ray[")).split("==")[1]
    assert CONFIG["docker"]["image"] == f"rayproject/ray:{ray}-py311-gpu"


def test_the_head_does_no_work_and_workers_are_spot():
    types = CONFIG["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    for name in ("cpu-worker", "gpu-worker"):
        assert types[name]["min_workers"] <= types[name]["max_workers"]
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["cpu-worker"]["min_workers"] >= 1, "a job plans the decoding with the nodes that are there"
    assert types["cpu-worker"]["labels"] == DATA_LABEL
    assert "labels" not in types["gpu-worker"]
    for node in types.values():
        assert "IamInstanceProfile" in node["node_config"]
    assert "AWS_SECRET" not in (ROOT / "cluster.yaml").read_text()


def test_every_node_and_the_submitter_have_the_token():
    assert CONFIG["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in CONFIG[key] if "ray start" in command]
        assert "RAY_AUTH_MODE=token ray start" in start
