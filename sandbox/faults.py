"""What can go wrong at Stripe or on the way there, ordered in advance.

A Fault says what happens to which calls and how often. Some are answers Stripe or a proxy gives, made
here; the others spoil the connection, which `lines` does. `Faults` hands each call the first that fits.
"""

import json
import threading
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from sandbox.errors import Refusal, failure

# fmt: off
Kind = Literal[
    "429", "500", "503", "400", "401", "403", "html", "list",
    "hang", "drip", "drip_headers", "reset", "truncated",
]
# fmt: on

DEFAULT_SECONDS = {"hang": 3600.0, "drip": 0.5, "drip_headers": 0.5}

STATUS = {"400": 400, "401": 401, "403": 403, "429": 429, "503": 503, "html": 502, "list": 200}

ERRORS = {
    "400": Refusal("This request was refused by order."),
    "401": Refusal("Invalid API Key provided: sk_test_****"),
    "403": Refusal(
        "The provided key 'rk_test_****' does not have the required permissions for this endpoint on account"
        " 'acct_sandbox'."
    ),
    "429": Refusal("Request rate limit exceeded.", code="rate_limit"),
    "503": Refusal("Stripe is temporarily unavailable.", type="api_error"),
}

HTML = "<!doctype html><title>502 Bad Gateway</title><h1>502 Bad Gateway</h1>"
LIST = "[]"


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Fault:
    kind: Kind
    method: str | None = None  # any
    path: str = "/v1/"  # and everything below it
    times: int | None = Field(default=None, ge=1)  # until cleared
    seconds: float | None = Field(default=None, ge=0, le=86400)  # of the hang, or between two bytes of a drip
    retry_after: float | None = Field(default=None, ge=0)  # Retry-After
    should_retry: bool | None = None  # Stripe-Should-Retry
    after: bool = False  # the operation takes effect, only its answer is lost

    @property
    def pause_seconds(self) -> float:
        return DEFAULT_SECONDS.get(self.kind, 0.0) if self.seconds is None else self.seconds

    @property
    def comes_first(self) -> bool:
        """Whether the call is answered before it has any effect, and outside of its idempotency key."""
        return not self.after and self.kind != "500"

    @property
    def replaces_answer(self) -> bool:
        """Whether the answer is another one, rather than the right one spoiled on the line."""
        return self.kind in STATUS

    @property
    def status(self) -> int:
        """Of the answer it gives itself: 500 too where only the line is spoiled, before any effect."""
        return STATUS.get(self.kind, 500)

    @property
    def content_type(self) -> str:
        return "text/html; charset=utf-8" if self.kind == "html" else "application/json"

    @property
    def body(self) -> str:
        if self.kind in ("html", "list"):
            return HTML if self.kind == "html" else LIST
        return json.dumps(ERRORS.get(self.kind, failure()).body, indent=2)

    @property
    def headers(self) -> dict[str, str]:
        told = {
            "Retry-After": None if self.retry_after is None else f"{self.retry_after:g}",
            "Stripe-Should-Retry": None if self.should_retry is None else str(self.should_retry).lower(),
            "Stripe-Rate-Limited-Reason": "global-rate" if self.kind == "429" else None,
        }
        return {name: value for name, value in told.items() if value is not None}

    def meets(self, method: str, path: str) -> bool:
        return path.startswith(self.path) and self.method in (None, method)


@dataclass
class Order:
    fault: Fault
    left: int | None


class Faults:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.orders: list[Order] = []

    def add(self, fault: Fault) -> None:
        with self.lock:
            self.orders.append(Order(fault, fault.times))

    def clear(self) -> None:
        with self.lock:
            self.orders.clear()

    def list(self) -> list[dict[str, Any]]:
        with self.lock:
            return [{**asdict(order.fault), "left": order.left} for order in self.orders]

    def take(self, method: str, path: str) -> Fault | None:
        with self.lock:
            order = next((o for o in self.orders if o.fault.meets(method, path)), None)
            if order is None:
                return None
            if order.left is not None:
                order.left -= 1
            if order.left == 0:
                self.orders.remove(order)
            return order.fault
