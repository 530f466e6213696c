"""A real S3 server: seaweedfs, from the package registry, on the loopback address."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
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


class Stub:
    """An S3 that answers as it is told, with what real servers hard to provoke give: a status, a cut body, silence.

    `answer(request)` sends the answer to one request (`http.server.BaseHTTPRequestHandler`).
    """

    def __init__(self, answer):
        self.requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler):  # noqa: N805
                self.requests.append((handler.command, handler.path, dict(handler.headers)))
                answer(handler)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_): ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def send(request, status, body=b"", headers=(), num_bytes=None):
    """One answer; `num_bytes` is promised, where it is not what is sent."""
    request.send_response(status)
    dates = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "ETag": '"a"'} if status in (200, 206) else {}
    for name, value in (dates | dict(headers)).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body) if num_bytes is None else num_bytes))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
        request.wfile.flush()


def error_body(code, message="said the server", extra=""):
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>'.encode()
