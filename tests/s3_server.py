"""A real S3 server: seaweedfs, from the package registry, on the loopback address."""

import json
import os
import socket
import subprocess
import sys
import time

import pyarrow.fs as pafs

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
LIMITED_KEYS = {"AWS_ACCESS_KEY_ID": "limited", "AWS_SECRET_ACCESS_KEY": "secret"}
"""May read and write `bucket`, and nothing else."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return port if port < 50_000 else port - 20_000  # gRPC listens 10,000 above


class Server:
    """A server that can be killed and started again on the same data and address."""

    def __init__(self, folder):
        self.folder = folder
        identities = [
            {"name": name, "credentials": [{"accessKey": name, "secretKey": "secret"}], "actions": actions}
            for name, actions in (
                ("key", ["Admin", "Read", "Write", "List"]),
                ("limited", ["Read:bucket", "Write:bucket", "List:bucket"]),
            )
        ]
        (folder / "id.json").write_text(json.dumps({"identities": identities}))
        (folder / "data").mkdir()
        self._ports = [free_port() for _ in range(4)]
        self.url = f"http://127.0.0.1:{self._ports[0]}"
        self.process = None

    @property
    def environment(self):
        return KEYS | {"AWS_ENDPOINT_URL": self.url, "AWS_REGION": "us-east-1"}

    def start(self):
        s3_port, master, volume, filer = self._ports
        command = [
            os.path.join(os.path.dirname(sys.executable), "weed"), "server", f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.port={s3_port}",
            f"-s3.config={self.folder / 'id.json'}", f"-master.port={master}", f"-volume.port={volume}",
            f"-filer.port={filer}", "-master.volumeSizeLimitMB=64", "-volume.max=50",
        ]  # fmt: skip
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def filesystem(self, *buckets):
        """pyarrow's view of it, as soon as it answers, with these buckets made."""
        fs = pafs.S3FileSystem(
            access_key="key", secret_key="secret", endpoint_override=self.url, region="us-east-1",
            allow_bucket_creation=True,
        )  # fmt: skip
        for _ in range(120):
            try:
                for bucket in buckets:
                    fs.create_dir(bucket)
                return fs
            except OSError:
                time.sleep(0.5)
        raise RuntimeError((self.folder / "log").read_text()[-2000:])
