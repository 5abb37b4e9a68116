"""A proxy that stands between a client and an object store, and breaks what passes.

It forwards requests as they are, the Host header included, so that their signatures stay valid. Faults come at random
rates from a seed, or one by one where a test asks for them (`FaultProxy.next`).
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

UPSTREAM_SECONDS = 60.0
NOT_FORWARDED = ("connection", "keep-alive", "expect", "transfer-encoding")
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message><RequestId>0</RequestId></Error>"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """Rates of faults, 0 to 1, among all requests; at most one meets a request, besides a delay."""

    slow_down: float = 0.0  # 503 SlowDown; the store hears nothing
    reset_before: float = 0.0  # the connection breaks; the store hears nothing
    reset_after: float = 0.0  # the store has done what was asked, and the connection breaks before the answer
    cut: float = 0.0  # half of the answer's body comes
    delay: float = 0.0
    delay_seconds: float = 0.2  # the longest delay


KINDS = tuple(field.name for field in fields(Faults) if not field.name.startswith("delay"))


class FaultProxy:
    """A proxy on a port of its own, in threads of this process.

    Attributes:
        endpoint: what to give to clients.
        faults: may be replaced at any time.
        met: how often each fault struck; "requests" counts all, "upstream" those the store has answered.
    """

    def __init__(self, upstream: str, faults: Faults | None = None, *, seed: int = 0) -> None:
        self.faults = faults or Faults()
        self.met: Counter[str] = Counter()
        self._upstream = urlsplit(upstream).netloc
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._wanted: list[tuple[str, str, str]] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self) -> None:
        """No faults, and none counted."""
        with self._lock:
            self.faults = Faults()
            self.met.clear()
            self._wanted.clear()

    def next(self, fault: str, method: str, part: str, times: int = 1) -> None:
        """The next requests of that method with ``part`` in path or query meet this fault, each once."""
        assert fault in KINDS, fault
        with self._lock:
            self._wanted += [(fault, method, part)] * times

    def choose(self, method: str, path: str) -> tuple[str | None, float]:
        """The fault that a request meets, and its delay in seconds."""
        with self._lock:
            self.met["requests"] += 1
            drawn, delayed, share = (self._random.random() for _ in range(3))
            fault = self._asked_for(method, path) or self._by_rate(drawn)
            if fault:
                self.met[fault] += 1
            faults = self.faults
            return fault, faults.delay_seconds * share if delayed < faults.delay else 0.0

    def forward(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
        """The store's answer. OSError or HTTPException when there is none."""
        connection = http.client.HTTPConnection(self._upstream, timeout=UPSTREAM_SECONDS)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            answer = Answer(response.status, response.reason, response.getheaders(), response.read())
        with self._lock:
            self.met["upstream"] += 1
        return answer

    def _asked_for(self, method: str, path: str) -> str | None:
        for number, (fault, wanted, part) in enumerate(self._wanted):
            if method == wanted and part in unquote(path):
                del self._wanted[number]
                return fault
        return None

    def _by_rate(self, drawn: float) -> str | None:
        for kind in KINDS:
            drawn -= getattr(self.faults, kind)
            if drawn < 0:
                return kind
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store said."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    proxy: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what this is about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _relay(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault, delay = proxy.choose(self.command, self.path)
        time.sleep(delay)
        if fault == "slow_down":
            return self._send(Answer(503, "Slow Down", [("Content-Type", "application/xml")], SLOW_DOWN))
        if fault == "reset_before":
            return self._reset()
        headers = [(name, value) for name, value in self.headers.items() if name.lower() not in NOT_FORWARDED]
        try:
            answer = proxy.forward(self.command, self.path, headers, body)
        except (OSError, http.client.HTTPException):
            return self._reset()
        if fault == "reset_after" or (fault == "cut" and len(answer.body) < 2):
            return self._reset()
        self._send(answer, cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _relay

    def _send(self, answer: Answer, *, cut: bool = False) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in _headers(answer, head=self.command == "HEAD"):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self.wfile.flush()
            time.sleep(0.02)  # a reset overtakes what was sent before it
            self._reset()

    def _reset(self) -> None:
        """Closes the connection so that the other side sees a reset, not an end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def _headers(answer: Answer, *, head: bool) -> Iterator[tuple[str, str]]:
    for name, value in answer.headers:
        if name.lower() in NOT_FORWARDED or (name.lower() == "content-length" and not head):
            continue
        yield name, value
    if not head:
        yield "Content-Length", str(len(answer.body))
