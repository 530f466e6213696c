"""Scoring from S3 to S3 through kills: of the driver at three random moments, of a worker, of the server.

    python benchmarks/score_kills.py --images FOLDER --model BUNDLE --number 20000

Exactly one row for each image is demanded after each of the three stories, and no file that should not be there.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from s3_server import Server  # noqa: E402


def start(output, model, *flags):
    command = [sys.executable, str(ROOT / "jobs" / "score.py"), "--images", "s3://bucket/images", "--model", model,
               "--output", f"s3://bucket/{output}", *flags]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def num_chunks(fs, output):
    return len(fs.get_file_info(pafs.FileSelector(f"bucket/{output}/chunks", allow_not_found=True)))


def wait_for(fs, output, job, number):
    while num_chunks(fs, output) < number:
        if job.poll() is not None:
            raise SystemExit(job.stderr.read())
        time.sleep(0.1)


def finish(job):
    _, said = job.communicate()
    print("   ", said.strip().splitlines()[-3])
    if job.returncode:
        raise SystemExit(said)


def check(fs, output, number):
    rows = pq.read_table(f"bucket/{output}/predictions", filesystem=fs)
    uris = len(set(rows["uri"].to_pylist()))
    files = sorted(info.path for info in fs.get_file_info(pafs.FileSelector(f"bucket/{output}", recursive=True)))
    ok = rows["status"].to_pylist().count("ok")
    print(f"    {len(rows)} rows, {uris} distinct URIs, {ok} ok, files: {[file.split('/', 2)[2] for file in files]}")
    if not len(rows) == uris == ok == number:
        raise SystemExit("rows are missing or repeated")


def scorers():
    """(pid of the Ray worker, pid of its process)."""
    lines = subprocess.run(["ps", "-eo", "ppid,pid,args"], capture_output=True, text=True, check=True).stdout
    return [tuple(map(int, line.split()[:2])) for line in lines.splitlines() if "_serve(" in line]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--number", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    luck = random.Random(arguments.seed)
    paths = sorted(Path(arguments.images).rglob("*.jpg"))[: arguments.number]
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(Path(scratch))
        server.start()
        os.environ.update(server.environment)
        fs = server.filesystem("bucket")
        try:
            stories(fs, server, paths, os.path.abspath(arguments.model), luck)
        finally:
            server.kill()


def stories(fs, server, paths, model, luck):
    def put(path):
        with fs.open_output_stream(f"bucket/images/{path.parent.name}/{path.name}") as stream:
            stream.write(path.read_bytes())

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(put, paths))
    number = len(paths)

    print("the driver is killed three times")
    for attempt in range(3):
        job = start("drivers", model, *(["--resume"] if attempt else []))
        wait_for(fs, "drivers", job, num_chunks(fs, "drivers") + luck.randint(1, 8))
        time.sleep(luck.random())
        job.kill()
        job.wait()
        print(f"    killed with {num_chunks(fs, 'drivers')} chunks written")
    finish(start("drivers", model, "--resume"))
    check(fs, "drivers", number)

    print("a worker is killed, then another one's process")
    job = start("workers", model)
    wait_for(fs, "workers", job, 3)
    os.kill(scorers()[0][0], signal.SIGKILL)
    wait_for(fs, "workers", job, 10)
    os.kill(scorers()[0][1], signal.SIGKILL)
    finish(job)
    check(fs, "workers", number)

    print("the server is killed, and started again after 10 s")
    job = start("server", model)
    wait_for(fs, "server", job, 5)
    server.kill()
    time.sleep(10)
    server.start()
    server.filesystem("bucket")
    finish(job)
    check(fs, "server", number)


if __name__ == "__main__":
    main()
