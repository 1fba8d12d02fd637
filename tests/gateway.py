"""A way to the database that can be closed: refusing, or silent as a network that swallows packets."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, make_url

READY_FOR_QUERY = b"Z\x00\x00\x00\x05I"


class Gateway:
    """Forwards TCP connections to PostgreSQL until told otherwise."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._silent = threading.Event()
        self._silent_once_connected = threading.Event()
        self._server = self._listen(0)
        self._port: int = self._server.getsockname()[1]

    @property
    def url(self) -> str:
        through: URL = self._target.set(host="127.0.0.1", port=self._port, query={})
        return through.render_as_string(hide_password=False)

    def refuse(self) -> None:
        """As if the server were stopped: connections break, new ones are refused."""
        self._close()

    def swallow(self) -> None:
        """As if the network were gone: nothing arrives any more, and nothing says so."""
        self._silent.set()

    def swallow_once_connected(self) -> None:
        """As if the server froze: who connects anew is let in, and then hears nothing."""
        self._silent_once_connected.set()

    def restore(self) -> None:
        if self._silent.is_set():
            self._close()
            self._silent.clear()
        self._server = self._listen(self._port)

    def _listen(self, port: int) -> socket.socket:
        server = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=[server], daemon=True).start()
        return server

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for end in (end for pair in self._pairs for end in pair):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._pairs.clear()

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = server.accept()
                if self._silent.is_set():
                    self._pairs.append((near, near))
                    continue
                far = self._reach()
                self._pairs.append((near, far))
                threading.Thread(target=self._forward, args=[near, far], daemon=True).start()

    def _reach(self) -> socket.socket:
        host = self._target.query.get("host") or self._target.host or "127.0.0.1"
        port = self._target.port or 5432
        if not str(host).startswith("/"):
            return socket.create_connection((str(host), port))
        far = socket.socket(socket.AF_UNIX)
        far.connect(f"{host}/.s.PGSQL.{port}")
        return far

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        silent = False
        with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as selector, near, far:
            for end in other:
                selector.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    source: socket.socket = key.fileobj  # type: ignore[assignment]
                    data = source.recv(65536)
                    if not data:
                        return
                    if not silent and not self._silent.is_set():
                        other[source].sendall(data)
                    if READY_FOR_QUERY in data and self._silent_once_connected.is_set():
                        silent = True


@contextmanager
def a_gateway(url: str) -> Iterator[Gateway]:
    gateway = Gateway(url)
    yield gateway
    gateway.refuse()
