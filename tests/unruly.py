"""A billing service over real HTTP that can be made to do anything: drip, hang, lie, go back, restart.

Left alone it keeps to the contract of docs/api.md: documents with `ETag` and `Cache-Control`, and the feed. Its
clock is its own. It is made of sockets, for what it does to a client no server framework would.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "bsk_of_the_tests_that_nobody_may_see"
ENTITLEMENTS, CHANGES = "/entitlements", "/api/changes"


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    port: int  # of the caller: one per connection

    @property
    def tenant(self) -> str:
        return unquote(self.path.split("/")[3])


Reply = Callable[[Asked], bytes | Iterable[bytes]]


def answer(body: Any = b"", status: int = 200, **headers: str) -> bytes:
    """An answer as it goes over the wire. Names of headers have _ for -."""
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Some reason"]
    given = {"Content-Length": str(len(written)), **{k.replace("_", "-"): v for k, v in headers.items()}}
    lines += [f"{name}: {value}" for name, value in given.items() if value]
    return "\r\n".join([*lines, "", ""]).encode() + written


class Service:
    """Serves until it is closed. `reply` set: that answers in place of the contract."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self.now = datetime(2031, 1, 1, tzinfo=UTC)  # nobody's clock but its own
        self.documents: dict[str, dict[str, Any]] = {}
        self.lasts_until: dict[str, datetime] = {}  # where time may change a document, for the feed to say
        self.feed: list[tuple[int, str]] = []
        self.epoch, self.head = "k3f9", 0
        self.cached = "private, max-age=30, stale-while-revalidate=60, stale-if-error=86400"
        self.reply: Reply | None = None
        self.closed = threading.Event()
        self._context = context
        self._news = threading.Condition()
        self._open: set[socket.socket] = set()
        self._listen(0)

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://localhost:{self.port}"

    def put(self, tenant: str, version: int, **features: Any) -> dict[str, Any]:
        """A tenant's document, at the end of the feed. Features by name: on, off, a limit or None."""
        given = {
            name: {"enabled": value} if isinstance(value, bool) else {"enabled": value != 0, "limit": value}
            for name, value in features.items()
        }
        self.documents[tenant] = {
            "tenant_id": tenant,
            "version": version,
            "as_of": self.now.isoformat().replace("+00:00", "Z"),
            "stale": False,
            "valid_until": None,
            "features": given,
        }
        self._moved(tenant)
        return self.documents[tenant]

    def forget(self, tenant: str) -> None:
        del self.documents[tenant]
        self._moved(tenant)

    def become_another(self, epoch: str) -> None:
        """Its database is lost, and another in its place."""
        self.epoch, self.head, self.feed = epoch, 0, []
        self.documents.clear()

    def wait_until_asked(self, times: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.asked) >= times, timeout=5), len(self.asked)

    def stop(self) -> None:
        """Connections break, new ones are refused."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.drop()

    def drop(self) -> None:
        """Connections break."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def start(self) -> None:
        self._listen(self.port)

    def say(self, what: bytes) -> None:
        """Unasked, to everybody who keeps a connection open."""
        for connection in list(self._open):
            connection.sendall(what)

    def _moved(self, tenant: str) -> None:
        self.head += 1
        self.feed = [entry for entry in self.feed if entry[1] != tenant] + [(self.head, tenant)]

    def _listen(self, port: int) -> None:
        self._server = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, args=[self._server], daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, (_, port) = server.accept()
                threading.Thread(target=self._serve, args=[connection, port], daemon=True).start()

    def _serve(self, plain: socket.socket, port: int) -> None:
        with suppress(OSError), plain:
            connection = self._context.wrap_socket(plain, server_side=True) if self._context else plain
            self._open.add(connection)
            try:
                with connection, connection.makefile("rb") as lines:
                    while asked := _read(lines, port):
                        self._answer(connection, asked)
            finally:
                self._open.discard(connection)

    def _answer(self, connection: socket.socket, asked: Asked) -> None:
        with self._news:
            self.asked.append(asked)
            self._news.notify_all()
        reply = (self.reply or self.by_contract)(asked)
        for piece in [reply] if isinstance(reply, bytes) else reply:
            connection.sendall(piece)
        if not isinstance(reply, bytes):
            connection.shutdown(socket.SHUT_RDWR)

    def by_contract(self, asked: Asked) -> bytes:
        """What docs/api.md says."""
        return self._page(asked) if asked.path.startswith(CHANGES) else self.entitlements(asked)

    def entitlements(self, asked: Asked) -> bytes:
        document = self.documents.get(asked.tenant)
        if document is None:
            return answer({"error": "No such tenant", "code": "tenant_not_found"}, 404, Date=self.date)
        tag = f'W/"{document["version"]}-{abs(hash(json.dumps(document["features"]))):x}"'
        headers: dict[str, Any] = {
            "ETag": tag,
            "Cache_Control": "private, no-cache" if document["stale"] else self.cached,
        }
        if asked.headers.get("if-none-match") == tag and not document["stale"]:
            return answer(status=304, Date=self.date, Content_Length="", **headers)
        return answer(document, Date=self.date, **headers)

    @property
    def date(self) -> str:
        return format_datetime(self.now, usegmt=True)

    def _page(self, asked: Asked) -> bytes:
        query = {name: values[0] for name, values in parse_qs(urlsplit(asked.path).query).items()}
        cursor = query.get("lastEventId", f"{self.epoch}-0")
        epoch, dash, position = cursor.rpartition("-")
        if not dash:
            return answer({"error": "lastEventId: …", "code": "bad_cursor"}, 400)
        after = int(position) if epoch == self.epoch and int(position) <= self.head else 0
        page = [entry for entry in self.feed if entry[0] > after][: int(query["limit"])]
        tag = f'W/"{self.epoch}-{self.head}"'
        if not page and asked.headers.get("if-none-match") == tag:
            return answer(status=304, ETag=tag, Date=self.date, Content_Length="")
        return answer([self._event(*entry) for entry in page], ETag=tag, Date=self.date)

    def _event(self, position: int, tenant: str) -> dict[str, Any]:
        document, end = self.documents.get(tenant), self.lasts_until.get(tenant)
        return {
            "specversion": "1.0",
            "id": f"{self.epoch}-{position:016d}",
            "type": "billing.tenant.state",
            "subject": tenant,
            **({"lastsuntil": end.isoformat()} if end else {}),
            **({"data": document} if document else {"method": "DELETE"}),
        }


def _read(lines: Any, port: int) -> Asked | None:
    first = lines.readline().decode("latin-1")
    if not first:
        return None
    headers = {}
    while (line := lines.readline().decode("latin-1").strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Asked(first.split(" ")[1], headers, port)


@contextmanager
def a_service(context: ssl.SSLContext | None = None) -> Iterator[Service]:
    service = Service(context)
    yield service
    service.closed.set()
    service.stop()


class Clock:
    """Stands until it is moved; the service's moves along."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds
        self._service.now += timedelta(seconds=seconds)
