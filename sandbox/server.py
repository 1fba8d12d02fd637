"""Serves the sandbox: `running` in a thread for tests, `python -m sandbox` as a process.

One thread per connection, kept alive between requests. The development server this builds on closes
every connection after one answer and sends answers as it likes; here each is sent in one piece by its
`Line`, which is where connection faults happen. Stopping cuts all lines, so nothing outlives the server.
"""

import io
import os
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Response

from sandbox.account import Account
from sandbox.app import create_app
from sandbox.control import Control
from sandbox.deliveries import Deliveries
from sandbox.lines import HungUp, Line
from sandbox.resources import portal, webhook_endpoints
from sandbox.safety import CannotStart, refuse_production
from sandbox.store import Store

__all__ = ["CannotStart", "Control", "Server", "running"]

HOST = "127.0.0.1"
DEFAULT_KEY = "sk_test_sandbox"


class Server(ThreadedWSGIServer):
    request_queue_size = 1024  # hundreds of callers may connect at once
    daemon_threads = False  # closing waits for them; cut lines end them

    def __init__(self, account: Account, port: int) -> None:
        self.lines = account.lines
        self.store = account.store
        self.deliveries = Deliveries(account.store)
        super().__init__(HOST, port, create_app(account, self.deliveries), Conversation)
        self.url = f"http://{HOST}:{self.port}"
        account.public_url = account.public_url or f"http://localhost:{self.port}"
        account.store.public_url = account.public_url

    def server_bind(self) -> None:
        try:
            socketserver.TCPServer.server_bind(self)
        except OSError as error:
            raise CannotStart(
                f"Port {self.port} is not free ({error.strerror}): stop what uses it or choose another --port."
            ) from error
        self.server_name, self.server_port = HOST, self.server_address[1]

    def server_close(self) -> None:
        self.lines.close()
        self.deliveries.close()
        super().server_close()

    def log(self, type: str, message: str, *args: Any) -> None:
        """Quiet: /_sandbox/requests has it all."""


class Conversation(WSGIRequestHandler):
    """One connection and the requests that come over it."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.line = Line(self.connection)
        self.server.lines.add(self.line)

    def finish(self) -> None:
        super().finish()
        self.server.lines.remove(self.line)

    def run_wsgi(self) -> None:
        environ = self.make_environ()
        body = self.read_body(environ)
        # read to its end before answering, or its rest would be taken for the next request
        environ |= {
            "wsgi.input": io.BytesIO(body),
            "CONTENT_LENGTH": str(len(body)),
            "sandbox.line": self.line,
        }
        response = Response.from_app(self.server.app, environ, buffered=True)
        content = response.get_data() if self.command != "HEAD" else b""
        try:
            self.line.send(self.head(response), content)
        except HungUp:
            self.close_connection = True

    def read_body(self, environ: Mapping[str, Any]) -> bytes:
        if environ.get("wsgi.input_terminated"):
            chunked: bytes = environ["wsgi.input"].read()
            return chunked
        return self.rfile.read(int(environ.get("CONTENT_LENGTH") or 0))

    def head(self, response: Response) -> bytes:
        with self.server.store.lock:  # or it might be the earlier instant of something made up for just then
            now = self.server.store.now()
        lines = [f"HTTP/1.1 {response.status}", f"Date: {self.date_time_string(now)}"]
        lines += [f"{name}: {value}" for name, value in response.headers]
        lines += ["Connection: close"] if self.close_connection else []
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def open_server(
    *,
    port: int,
    data: Path | None,
    key: str,
    public_url: str = "",
    webhook_url: str = "",
    webhook_secret: str = "",
    environ: Mapping[str, str] = os.environ,
) -> Server:
    refuse_production(key, environ)
    try:
        store = Store(data)
        portal.ensure_default_configuration(store)
        if webhook_url:
            webhook_endpoints.ensure(store, webhook_url, webhook_secret)
    except (OSError, ValueError) as error:
        raise CannotStart(f"{data} cannot be used ({error}): move it away to start afresh.") from error
    return Server(Account(key, store, public_url.rstrip("/")), port)


@contextmanager
def running(port: int = 0, data: Path | None = None, key: str = DEFAULT_KEY) -> Iterator[Control]:
    """A sandbox in a thread of this process, stopped and gone at the end of the block."""
    server = open_server(port=port, data=data, key=key)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="sandbox")
    thread.start()
    try:
        yield Control(server.url, key)
    finally:
        server.shutdown()
        thread.join()
