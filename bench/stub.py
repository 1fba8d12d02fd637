"""A Stripe that only ever says one thing, after a given time, at next to no cost.

`python -m bench.stub PORT MILLISECONDS` answers every request, on connections kept alive, with one portal
session. It checks nothing: what it saves in CPU is what makes the routes in front of it comparable. An
OpenTelemetry exporter is content with it, too.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

SESSION = {
    "id": "bps_1Bench000000000000000001",
    "object": "billing_portal.session",
    "configuration": "bpc_1Bench000000000000001",
    "created": 1767225600,
    "customer": "cus_Bench000000001",
    "customer_account": None,
    "flow": None,
    "livemode": False,
    "locale": None,
    "on_behalf_of": None,
    "return_url": "https://app.example.com/settings/billing",
    "url": "https://billing.stripe.com/p/session/test_YWNjdF8xQmVuY2gsX1BvcnRhbA0100abcdef",
}
BODY = json.dumps(SESSION, indent=2).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nRequest-Id: req_Bench00000001\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Answering(asyncio.Protocol):
    """One connection. Requests come one after the other, each answered once it has arrived in full."""

    transport: asyncio.Transport

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if end and len(body) >= (int(length[1]) if length else 0):
            self._received = b""
            asyncio.get_running_loop().call_later(self._seconds, self._answer)

    def _answer(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(ANSWER)


async def serve(port: int, seconds: float) -> None:
    """Until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answering(seconds), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]) / 1000))
