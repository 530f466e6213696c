"""Scoring from S3 and from local disk, side by side; and what a fetched object costs with three clients.

    python benchmarks/score_s3.py --images FOLDER

The server runs on the same machine, so its CPU is taken from the scoring: it is measured and reported.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from s3_server import Server  # noqa: E402
from score_throughput import job, make_bundle  # noqa: E402


def cpu_of(process):
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def clients(fs, uris, server):
    """CPU ms an object, of the client and of the server, 16 requests at a time."""
    import obstore
    import s3fs

    from deepfake_ray.storage.stores import object_store

    store = object_store("s3://bucket")
    keys = [uri.removeprefix("s3://bucket/") for uri in uris]

    def threaded(get):
        with ThreadPoolExecutor(16) as threads:
            for _ in threads.map(get, keys):
                pass

    async def with_s3fs():
        remote = s3fs.S3FileSystem(asynchronous=True, endpoint_url=server.url, key="key", secret="secret")
        session = await remote.set_session()
        limit = asyncio.Semaphore(16)

        async def get(key):
            async with limit:
                await remote._cat_file(f"bucket/{key}")

        await asyncio.gather(*map(get, keys))
        await session.close()

    ways = {
        "obstore": lambda: threaded(lambda key: bytes(obstore.get(store, key).bytes())),
        "pyarrow": lambda: threaded(lambda key: fs.open_input_stream(f"bucket/{key}").read()),
        "s3fs": lambda: asyncio.run(with_s3fs()),
    }
    for name, way in ways.items():
        before, served, started = time.process_time(), cpu_of(server.process), time.monotonic()
        way()
        wall = time.monotonic() - started
        own = (time.process_time() - before) / len(keys) * 1000
        theirs = (cpu_of(server.process) - served) / len(keys) * 1000
        print(f"{name}: {own:.2f} ms of the client's CPU, {theirs:.2f} ms of the server's, an object; "
              f"{len(keys) / wall:.0f} objects/s", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--arch", default="cnn")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    paths = sorted(Path(arguments.images).rglob("*.jpg"))
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(Path(scratch))
        server.start()
        os.environ.update(server.environment)
        try:
            compare(arguments, server, paths, scratch)
        finally:
            server.kill()


def compare(arguments, server, paths, scratch):
    fs = server.filesystem("bucket")
    root = Path(arguments.images)

    def put(path):
        with fs.open_output_stream(f"bucket/images/{path.relative_to(root)}") as stream:
            stream.write(path.read_bytes())

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(put, paths))
    uris = [f"s3://bucket/images/{path.relative_to(root)}" for path in paths]
    make_bundle(f"{scratch}/model", arguments.arch, arguments.image_size)
    Path(scratch, "local.txt").write_text("\n".join(map(str, paths)))
    Path(scratch, "s3.txt").write_text("\n".join(uris))
    ratios = []
    for repeat in range(arguments.repeats):
        local, _ = job(f"{scratch}/local.txt", f"{scratch}/model", f"{scratch}/local-{repeat}")
        served = cpu_of(server.process)
        remote, _ = job(f"{scratch}/s3.txt", f"{scratch}/model", f"{scratch}/s3-{repeat}")
        served = (cpu_of(server.process) - served) / (len(paths) / remote["images_per_s"])
        speeds = local["images_per_s"], remote["images_per_s"]
        ratios.append(speeds[1] / speeds[0])
        print(f"local {speeds[0]:.1f}, S3 {speeds[1]:.1f} images/s, ratio {ratios[-1]:.3f}, the server took "
              f"{served:.2f} of a core", flush=True)  # fmt: skip
    print(f"{arguments.arch} {arguments.image_size} px: median ratio {statistics.median(ratios):.3f}")
    clients(fs, uris, server)


if __name__ == "__main__":
    main()
