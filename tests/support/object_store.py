"""An S3 server for tests, and a proxy before it that fails in the ways in which stores and wires do."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "archive"
# What it does to the bodies of objects that are read, or to whatever is asked.
MODES = ("short", "flipped", "cut", "down", "refused")


class Faulty(ThreadingHTTPServer):
    """Passes requests on. `mode`: what goes wrong, None for nothing; `seen`: how many requests met it."""

    daemon_threads = True
    mode: str | None = None
    seen = 0
    target = ("", 0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def log_message(self, *_arguments: Any) -> None:
        """Nobody reads it."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        mode = self.server.mode
        is_object = self.command == "GET" and ".parquet" in self.path
        if mode in {"down", "refused"} or (mode and is_object):
            self.server.seen += 1
        if mode in {"down", "refused"}:
            self.send_response(503 if mode == "down" else 403)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(*self.server.target)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        data = answer.read()
        length = answer.headers.get("Content-Length") if self.command == "HEAD" else None
        if mode and is_object:
            data = _spoiled(mode, data)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data) + (mode == "cut" and is_object)))
        self.end_headers()
        self.wfile.write(data)
        if mode == "cut" and is_object:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        upstream.close()


for _method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler._pass)


def _spoiled(mode: str, data: bytes) -> bytes:
    if mode == "flipped":
        middle = len(data) // 3
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    return data[: len(data) // 2]


@contextmanager
def faulty_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Faulty]]:
    """The URL of an archive in S3, and the proxy before it; what gives access to it is in the environment."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST"), timeout=30).close()  # of tests before
    proxy = Faulty(("127.0.0.1", 0), _Handler)
    proxy.target = (host, port)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-tests",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    made = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    made.create_bucket(Bucket=BUCKET)
    try:
        yield f"s3://{BUCKET}/history", proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
        moto.stop()
