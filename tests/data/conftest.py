"""What the tests of data share: a small server on this machine, in place of the publishers of corpora."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import settings

from remanence.data import fetch

# How long an example takes says something about the machine and nothing about what is tested.
settings.register_profile("data", deadline=None)
settings.load_profile("data")


@dataclass
class Server:
    """What it serves, how it misbehaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off, one each."""
    refuses: list[int] = field(default_factory=list)
    """HTTP status of the next answers, one each."""
    honours_ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Paths with the range that was asked for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self) -> None:
        state, span = self.state, self.headers.get("Range")
        state.asked.append((self.path, span))
        if state.refuses:
            return self._end(state.refuses.pop(0))
        if self.path not in state.files:
            return self._end(404)
        body, begin, status = state.files[self.path], 0, 200
        if span and state.honours_ranges:
            begin, status = int(span.removeprefix("bytes=").rstrip("-")), 206
            if begin >= len(body):
                return self._end(416)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) - begin))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        sent = body[begin:]
        if state.cuts:
            sent = sent[: state.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(sent)
        return None

    def _end(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name in the library)
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()
    handler = type("Handler", (_Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        running.shutdown()
        thread.join()
