"""An issuer of tokens: its keys over HTTP, on this machine, with every way to fail that a real one has.

It counts how often it is asked. What it answers may be changed at any time; closed, it refuses connections.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BYTE_EVERY_SECONDS = 0.1


class Issuer(ThreadingHTTPServer):
    """Publishes no keys until it is told which."""

    daemon_threads = False  # closing waits for them; `closed` ends them

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.url = f"http://127.0.0.1:{self.server_port}/jwks.json"
        self.asked = 0
        self._more = threading.Condition()
        self.closed = threading.Event()
        self.publish()

    def note(self) -> None:
        with self._more:
            self.asked += 1
            self._more.notify_all()

    def wait_until_asked(self, times: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: self.asked >= times, timeout=5)

    def publish(self, *keys: dict[str, Any]) -> None:
        self.answer(json.dumps({"keys": keys}))

    def answer(self, body: str, status: int = 200, *, drip: bool = False, **headers: str) -> None:
        self.reply = status, headers, body.encode(), drip

    def close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            self.shutdown()
            self.server_close()


class _Conversation(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.server.note()
        status, headers, body, drip = self.server.reply
        with suppress(OSError):  # whoever asked has given up
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self._send_slowly(body) if drip else self.wfile.write(body)

    def _send_slowly(self, body: bytes) -> None:
        for byte in body:
            if self.server.closed.wait(BYTE_EVERY_SECONDS):
                return
            self.wfile.write(bytes([byte]))

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `asked` tells enough."""


@contextmanager
def running() -> Iterator[Issuer]:
    """An issuer in a thread of this process, stopped and gone at the end of the block."""
    issuer = Issuer()
    thread = threading.Thread(target=issuer.serve_forever, args=(0.02,), name="issuer")
    thread.start()
    try:
        yield issuer
    finally:
        issuer.close()
        thread.join()
