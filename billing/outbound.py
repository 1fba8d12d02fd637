"""HTTP calls that end in time, whatever the other side does.

Every connect, send and receive of an `Http` gets only what remains of the `deadline` around it, so that a
server that drips one byte a second, in headers or body, cannot hold the caller longer. No thread per call.
One `Http` per process and address: its connections are shared by all threads.

What it cannot bound is the resolver's own time for a host name.
"""

from __future__ import annotations

import http.client
import io
import socket
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import certifi
from opentelemetry import trace
from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import NewConnectionError
from urllib3.util import make_headers, parse_url
from urllib3.util.connection import create_connection

from billing import deadline
from billing.config import SettingsError

CONNECT_SECONDS = 3.0  # per address: one that is silent this long will not answer, another may
SILENCE_SECONDS = 5.0  # one try is given up after this much silence, so that another fits into the deadline

KEPT_OPEN = 64  # connections a process keeps to Stripe: as many as it has threads (gunicorn.conf.py)

ONCE: Mapping[str, Any] = {"redirect": False, "retries": False, "timeout": SILENCE_SECONDS}

tracer = trace.get_tracer("billing")


def _share(at_most: float) -> float:
    """What one step may take, in seconds; `TimeoutError` once the deadline has passed."""
    seconds = deadline.left()
    if seconds <= 0:
        raise TimeoutError("the deadline has passed")
    return min(seconds, at_most)


class _Receiver(io.RawIOBase):
    """The reading end of a socket, each receive with its own share of the deadline."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_share(SILENCE_SECONDS))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Source:
    """What `http.client.HTTPResponse` needs of a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Receiver(self._sock))


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(_Source(sock), *args, **kwargs)  # type: ignore[arg-type]  # it only calls makefile


class _Connection(HTTPConnection):
    response_class = _Response

    def _new_conn(self) -> socket.socket:
        failure: Exception = OSError("no address")
        try:
            for address in _addresses(self._dns_host, self.port):
                try:
                    sock = create_connection(
                        address, _share(CONNECT_SECONDS), socket_options=self.socket_options
                    )
                except OSError as e:
                    failure = e
                else:
                    sock.settimeout(_share(SILENCE_SECONDS))  # for the TLS handshake
                    return sock
        except (OSError, UnicodeError) as e:  # the latter: a host name that cannot be one
            failure = e
        raise NewConnectionError(self, f"Failed to connect: {failure}") from failure

    def send(self, data: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(_share(SILENCE_SECONDS))
        super().send(data)


def _addresses(host: str, port: int) -> dict[tuple[str, int], None]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {(str(address[0]), int(address[1])): None for *_, address in found}


class _SecureConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class Http:
    """A way to `address` that keeps up to `connections` open for the next callers, in whichever thread.

    The environment's proxy settings are read here, once, unless the way is `direct`. Redirects are not
    followed, nothing is tried twice.
    """

    def __init__(
        self, address: str, *, connections: int, ca_certs: str | None = None, direct: bool = False
    ) -> None:
        kept: dict[str, Any] = {"maxsize": connections, "ca_certs": ca_certs or certifi.where()}
        proxy = None if direct else _proxy(address)
        self._pools = _through(proxy, kept) if proxy else PoolManager(**kept)
        self._pools.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> BaseHTTPResponse:
        """The answer, whole. `urllib3.exceptions.HTTPError` when there is none within the deadline."""
        with tracer.start_as_current_span(f"HTTP {method}", kind=trace.SpanKind.CLIENT) as span:
            answer = self._pools.urlopen(method, url, headers=headers, body=body, **ONCE)
            if span.is_recording():
                span.set_attributes(
                    {
                        "http.request.method": method,
                        "url.full": url.partition("?")[0],  # a search at Stripe has e-mail addresses behind it
                        "http.response.status_code": answer.status,
                    }
                )
            return answer

    def close(self) -> None:
        """Let go of the connections that are kept open."""
        self._pools.clear()


def _proxy(address: str) -> str | None:
    parts = urlsplit(address)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise SettingsError(f"{parts.scheme.upper()}_PROXY: must begin with http:// or https://")
    return proxy


def _through(proxy: str, kept: Mapping[str, Any]) -> ProxyManager:
    auth = unquote(parse_url(proxy).auth or "")
    return ProxyManager(proxy, proxy_headers=make_headers(proxy_basic_auth=auth) if auth else None, **kept)
