"""deploy/: the pods by Kubernetes' own schemas, the rest by KubeRay's API reference (1.6). All offline."""

import re
import shlex

import kubernetes_validate
import pytest
import yaml
from checkout import ROOT

from deepfake_ray.cluster.placement import DATA_LABEL
from deepfake_ray.config import ScoreConfig
from deepfake_ray.drivers.cli import parse

JOB = yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
GROUPS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]} | {"head": CLUSTER["headGroupSpec"]}
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def container(name):
    (found,) = GROUPS[name]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("name", GROUPS)
def test_kubernetes_accepts_the_pods(name):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **GROUPS[name]["template"]}
    kubernetes_validate.validate(pod, "1.33", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolic"):
        kubernetes_validate.validate({**pod, "spec": {**pod["spec"], "restartPolic": "Never"}}, "1.33", strict=True)


def test_kuberay_knows_the_fields():
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    assert set(JOB["spec"]) <= {
        "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata",
        "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML",
        "jobId", "submissionMode", "entrypointResources", "entrypointNumCpus", "entrypointNumGpus",
        "ttlSecondsAfterFinished", "shutdownAfterJobFinishes", "suspend", "preRunningDeadlineSeconds",
    }  # fmt: skip
    assert set(CLUSTER) <= {
        "authOptions", "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "enableInTreeAutoscaling",
        "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs", "upgradeStrategy",
    }  # fmt: skip
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["autoscalerOptions"]["version"] == "v2", "jobs read the state of that one"
    for name, group in GROUPS.items():
        of_all = {"rayStartParams", "template", "labels", "resources"}
        of_workers = {"groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds"}
        assert set(group) <= (of_all if name == "head" else of_all | of_workers)
        assert "labels" not in group["rayStartParams"], "KubeRay refuses them there"
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_who_does_what():
    assert GROUPS["head"]["rayStartParams"]["num-cpus"] == "0"
    assert GROUPS["cpu"]["labels"] == DATA_LABEL
    assert "labels" not in GROUPS["gpu"]
    assert container("gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert GROUPS["cpu"]["minReplicas"] >= 1, "a job plans the decoding with the nodes that are there"
    assert {group["template"]["spec"]["serviceAccountName"] for group in GROUPS.values()} == {"deepfake-ray"}


def test_the_entrypoint_is_a_job_of_this_project():
    python, job, *flags = shlex.split(JOB["spec"]["entrypoint"])
    folder = re.search(r"^COPY --chown=ray \. (\S+)$", DOCKERFILE, re.MULTILINE)[1]
    assert (python, job) == ("python", f"{folder}/jobs/score.py")
    config = parse(ScoreConfig, flags)
    assert (config.use_gpu, config.num_workers, config.resume) == ("yes", 2, True)


def test_versions_are_those_of_the_project():
    version = re.search(r'"ray\[.*\]==([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert CLUSTER["rayVersion"] == version
    assert f"FROM rayproject/ray:{version}-py311-gpu\n" in DOCKERFILE
