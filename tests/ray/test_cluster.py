"""Clusters of several nodes: lost ones, labelled ones, ones with GPUs, ones that an autoscaler has yet to start."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from checkout import ROOT
from clusters import autoscaling_cluster, cluster
from processes import run_job, scorer_processes, start_job, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def large_images(folder, number):
    """JPEGs that take some 20 ms each to decode."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 3), np.uint8)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(np.broadcast_to(pixels, (2400, 2400, 3))))
    for i in range(number):
        (folder / f"{i:04d}.jpg").write_bytes(data)


def test_scoring_goes_on_when_a_node_is_lost(untrained, tmp_path):
    """Three nodes with a scorer each; one is killed with the chunks that it holds, and there is no room for another."""
    large_images(tmp_path / "images", 400)
    output = tmp_path / "run"
    flags = ["--images", tmp_path / "images", "--model", untrained, "--output", output, "--batch-size", 2,
             "--shared-storage"]  # fmt: skip
    with cluster(1, 1) as nodes:
        lost = nodes.add_node(num_cpus=1)
        job = start_job("score", *flags, address=nodes.address)
        chunks = output / "chunks"
        wait_until(job, lambda: len(scorer_processes()) == 3 and len(list(chunks.glob("*.parquet"))) >= 4)
        nodes.remove_node(lost, allow_graceful=False)
        text, _ = job.communicate(timeout=240)
    assert job.returncode == 0, text
    assert "chunks were lost with the node or process that held them" in text
    assert "Traceback" not in text
    rows = pq.read_table(output / "predictions")
    assert sorted(rows["row"].to_pylist()) == list(range(400))
    assert len(set(rows["uri"].to_pylist())) == 400
    assert json.loads((output / "run.json").read_text())["num_ok"] == 400


GPU_PLAN = """
import json, sys
from pathlib import Path
import ray
from ray.util.state import list_actors
from chunks import scorer_spec
from deepfake_ray.data import manifest
from deepfake_ray.scoring.actors import reports_of, scoring_dataset
from deepfake_ray.cluster.placement import plan_scoring
from deepfake_ray.cluster.session import cluster_nodes

model, images, output = sys.argv[1], sys.argv[2], Path(sys.argv[3])
ray.init(log_to_driver=False)
manifest.write(manifest.list_images(images), str(output / "manifest"))
chunks = manifest.chunks(str(output / "manifest"), rows_per_chunk=2)
plan = plan_scoring(cluster_nodes(), None, "auto")
reports = list(reports_of(scoring_dataset(chunks, scorer_spec(model, output), plan)))
node_of = {node["NodeID"]: node["Labels"].get("name", "head") for node in ray.nodes()}
actors = [
    {"name": actor.class_name, "node": node_of[actor.node_id], "resources": actor.required_resources}
    for actor in list_actors(detail=True, limit=1000)
    if actor.class_name.startswith("MapWorker")
]
print(json.dumps({"images": sum(report.num_images for report in reports), "actors": actors}))
"""


def test_decoders_hold_cpus_of_labelled_nodes_and_scorers_hold_gpus(untrained, tmp_path):
    """Two nodes with a (logical) GPU each, a CPU node with the label, one without, and a head that does no work.

    The model computes on the CPU; everything else is as it would be.
    """
    large_images(tmp_path / "images", 20)
    (tmp_path / "chunks").mkdir()
    nodes = [
        {"num_cpus": 0},
        *({"num_cpus": 2, "num_gpus": 1, "labels": {"name": f"gpu-{i}"}} for i in range(2)),
        {"num_cpus": 2, "labels": {"name": "data", "deepfake-ray/work": "data"}},
        {"num_cpus": 1, "labels": {"name": "other"}},
    ]
    with cluster(*nodes, dashboard=True) as found:
        done = subprocess.run(
            [sys.executable, "-c", GPU_PLAN, untrained, str(tmp_path / "images"), str(tmp_path)],
            env={**os.environ, "RAY_ADDRESS": found.address, "PYTHONPATH": str(ROOT / "tests" / "support")},
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["images"] == 20
    loaders = [actor for actor in result["actors"] if actor["name"] == "MapWorker(MapBatches(Load))"]
    scorers = [actor for actor in result["actors"] if actor["name"] == "MapWorker(MapBatches(Score))"]
    assert len(loaders) + len(scorers) == len(result["actors"])
    assert [actor["node"] for actor in loaders] == ["data", "data"]
    assert {actor["resources"]["CPU"] for actor in loaders} == {1}
    assert sorted(actor["node"] for actor in scorers) == ["gpu-0", "gpu-1"]
    assert {(actor["resources"]["CPU"], actor["resources"]["GPU"]) for actor in scorers} == {(1, 1)}


def test_nodes_that_an_autoscaler_starts_are_waited_for(untrained, sample_folder, tmp_path):
    flags = ["--images", sample_folder / "Test", "--model", untrained, "--shared-storage"]
    with autoscaling_cluster(cpu=({"CPU": 1}, 2)) as address:
        waited = run_job("score", *flags, "--output", tmp_path / "a", "--num-workers", 2, address=address)
        told = run_job("score", *flags, "--output", tmp_path / "b", "--use-gpu", "yes", address=address)
    assert waited.returncode == 0, waited.stderr
    assert "waiting for the autoscaler: A job needs a node with CPUs" in waited.stderr
    assert json.loads((tmp_path / "a" / "run.json").read_text())["num_ok"] == 80
    assert told.returncode == 2, told.stderr
    assert "use-gpu yes needs a GPU in the cluster" in told.stderr
    assert "Its autoscaler cannot add such nodes" in told.stderr
    assert "Traceback" not in told.stderr
