"""A proxy in front of an S3 server that does what real object storage does on bad days, and counts what is asked of it."""

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

FAULTS = ("500", "503", "delay", "reset", "lost", "cut")
"""Two error answers; an answer that comes late; a connection that is reset before the request was carried out, or after it;
an answer that breaks off in the middle of its body."""
DELAY_S = 0.3
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "proxy-connection"}


class FaultyS3:
    """The proxy. Every request of a kind and key fails at most twice in a row, so that patience pays.

    seed: draws which requests fail, and how, for each kind and key by itself; threads do not change it.
    """

    def __init__(self, upstream: str, seed: int = 0, rate: float = 0.0, faults: tuple[str, ...] = FAULTS) -> None:
        self.upstream = urlsplit(upstream)
        self.seed, self.rate, self.faults = seed, rate, faults
        self.outage = ""
        """While it is "reset", every connection is reset; while it is "503", every answer is that; while it is "hang", nothing
        is answered."""
        self.expired: set[str] = set()
        """Access keys that are refused."""
        self.requests: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.keys: list[tuple[str, str, str]] = []
        """(kind, key, range) of each request."""
        self.most_at_once = 0
        self._at_once = 0
        self._draws: dict[str, random.Random] = {}
        self._in_a_row: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.uri = ""

    @contextmanager
    def running(self) -> Iterator["FaultyS3"]:
        """The proxy, served from a thread on loopback; `uri` is where."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def reset_counts(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self.requests.clear()
            self.injected.clear()
            self.keys.clear()
            self.most_at_once = 0

    def begin(self, kind: str, key: str, span: str) -> str | None:
        """Count a request; the fault that it gets, if any."""
        with self._lock:
            self.requests[kind] += 1
            self.keys.append((kind, key, span))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            name = f"{kind} {key} {span}"
            draw = self._draws.setdefault(name, random.Random(f"{self.seed} {name}"))
            if draw.random() >= self.rate or self._in_a_row[name] >= 2:
                self._in_a_row[name] = 0
                return None
            self._in_a_row[name] += 1
            fault = draw.choice(self.faults)
            self.injected[fault] += 1
            return fault

    def end(self) -> None:
        """A request is over."""
        with self._lock:
            self._at_once -= 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients of a connection that was reset are expected to be gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultyS3

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self._chunked() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        path, query = urlsplit(self.path)[2:4]
        options = parse_qs(query, keep_blank_values=True)
        is_list = self.command == "GET" and ("list-type" in options or "prefix" in options)
        while self.owner.outage == "hang":
            time.sleep(0.1)
        if self.owner.outage == "reset":
            self._reset()
            return
        if self.owner.outage == "503":
            self._refuse(503, "SlowDown")
            return
        signed = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        if signed is not None and signed[1] in self.owner.expired:
            self._refuse(400, "ExpiredToken")
            return
        fault = self.owner.begin("LIST" if is_list else self.command, path, self.headers.get("Range") or query)
        try:
            self._answer(fault, body)
        finally:
            self.owner.end()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _answer(self, fault: str | None, body: bytes) -> None:
        if fault in ("500", "503"):
            self._refuse(int(fault), "InternalError" if fault == "500" else "SlowDown")
            return
        if fault == "delay":
            time.sleep(DELAY_S)
        if fault != "reset":
            status, headers, answer = self._forward(body)
            if fault == "cut":
                self._send(status, headers, answer[: len(answer) // 2], length=len(answer))
            elif fault != "lost":
                self._send(status, headers, answer)
                return
        self._reset()

    def _refuse(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self._send(status, [("Content-Type", "application/xml")], b"" if self.command == "HEAD" else text)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = self.owner.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_HEADERS}
        headers["Content-Length"] = str(len(body))
        try:
            connection.request(self.command, self.path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_HEADERS and not (name.lower() == "content-length" and self.command != "HEAD"):
                self.send_header(name, value)
        if self.command != "HEAD" or not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return body

    def _reset(self) -> None:
        """Close with RST instead of FIN."""
        self.close_connection = True
        time.sleep(0.01)  # what was sent before should arrive before the reset
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Silent."""
