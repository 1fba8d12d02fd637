"""/_sandbox: the levers behind the scenery. No part of Stripe's API, and no key is asked for.

POST, GET and DELETE /_sandbox/faults; POST /_sandbox/latency; GET and DELETE /_sandbox/requests;
GET /_sandbox/connections. `Control` pulls the same levers from Python, in this process or another.
"""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, request
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from sandbox.account import Account
from sandbox.faults import Fault

Answer = tuple[Any, int]


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Latency:
    seconds: float = Field(ge=0, le=3600)


def blueprint(account: Account) -> Blueprint:
    levers = Blueprint("control", __name__, url_prefix="/_sandbox")

    @levers.post("/faults")
    def order_fault() -> Answer:
        account.faults.add(TypeAdapter(Fault).validate_json(request.get_data()))
        return account.faults.list(), 201

    @levers.get("/faults")
    def list_faults() -> Answer:
        return account.faults.list(), 200

    @levers.delete("/faults")
    def clear_faults() -> Answer:
        account.faults.clear()
        account.lines.cut(faulty_only=True)
        return [], 200

    @levers.post("/latency")
    def set_latency() -> Answer:
        account.latency_seconds = TypeAdapter(Latency).validate_json(request.get_data()).seconds
        return {"seconds": account.latency_seconds}, 200

    @levers.get("/requests")
    def list_requests() -> Answer:
        return account.log.list(), 200

    @levers.delete("/requests")
    def clear_requests() -> Answer:
        account.log.clear()
        return [], 200

    @levers.get("/connections")
    def count_connections() -> Answer:
        return account.lines.counts(), 200

    @levers.errorhandler(ValidationError)
    def refuse(error: ValidationError) -> Answer:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        return {"error": f"{place}: {first['msg']}" if place else first["msg"]}, 400

    return levers


class Control:
    """A running sandbox, by its address."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key

    def fault(self, kind: str, **options: Any) -> None:
        """Order a fault; the options are those of `faults.Fault`."""
        self.send("POST", "faults", {"kind": kind, **options})

    def latency(self, seconds: float) -> None:
        self.send("POST", "latency", {"seconds": seconds})

    def requests(self) -> list[dict[str, Any]]:
        noted: list[dict[str, Any]] = self.send("GET", "requests")
        return noted

    def connections(self) -> dict[str, int]:
        counts: dict[str, int] = self.send("GET", "connections")
        return counts

    def clear(self) -> None:
        """No faults, no latency, nothing noted; calls that hang in a fault are cut off."""
        self.send("DELETE", "faults")
        self.latency(0)
        self.send("DELETE", "requests")

    def send(self, method: str, lever: str, body: dict[str, Any] | None = None) -> Any:
        # a plain connection of its own, so that nothing counted or traced for API calls sees it
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request(method, f"/_sandbox/{lever}", json.dumps(body) if body else None)
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status >= 400:
            raise ValueError(answer["error"])
        return answer
