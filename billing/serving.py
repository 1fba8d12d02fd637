"""How gunicorn's threads serve us: with limited patience, and in our own words.

What gunicorn cannot parse never reaches Flask. Its own answer to that is a page of HTML and a log line that
both quote the request, a token in a broken header included; ours say the kind of fault, in the one shape.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import structlog
from gunicorn.http import errors
from gunicorn.workers.gthread import TConn, ThreadWorker

SILENCE_SECONDS = 10  # a caller that goes quiet in the middle of a request gives its thread back

_STATUS = {errors.LimitRequestLine: 414, errors.LimitRequestHeaders: 431, errors.UnsupportedTransferCoding: 501}
_SENTENCE = {
    400: "Bad request",
    414: "Request line too long",
    431: "Request header fields too large",
    500: "Internal server error",
    501: "Not implemented",
}

log = structlog.get_logger(__name__)


class Worker(ThreadWorker):
    """gunicorn's threads, with the above."""

    def handle(self, conn: TConn) -> Any:
        timeval = struct.pack("ll", SILENCE_SECONDS, 0)
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        return super().handle(conn)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        status = _STATUS.get(type(exc), 400) if isinstance(exc, errors.ParseException) else 500
        log.warning("http.malformed", kind=type(exc).__name__, status=status, exc_info=status == 500)
        body = json.dumps({"error": _SENTENCE[status]}, separators=(",", ":"))
        head = (
            f"HTTP/1.1 {status} {_SENTENCE[status]}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        )
        try:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        except OSError:
            log.debug("http.gone")
