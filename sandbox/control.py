"""/_sandbox: the levers behind the scenery. No part of Stripe's API, and no key is asked for.

Things go wrong by /_sandbox/faults, /latency and /webhooks; time moves by /clock, and what an account does
about unpaid invoices is set at /dunning; things happen by /checkout, /promotion_code, /authentication,
/settlement, /events and /secrets; what happened is at /requests, /connections and /deliveries. `Control`
pulls the same levers from Python, in this process or another, and says what each does.
"""

import http.client
import json
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from flask import Blueprint, request
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from sandbox import life
from sandbox.account import Account
from sandbox.deliveries import Deliveries
from sandbox.errors import Refusal
from sandbox.faults import Fault
from sandbox.resources import checkout, events, webhook_endpoints
from sandbox.store import RETRY_DAYS

Answer = tuple[Any, int]


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Latency:
    seconds: float = Field(ge=0, le=3600)


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Advance:
    advance: int = Field(ge=0)


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Checkout:
    session: str
    payment_method: str | None = "pm_card_visa"
    promotion_code: str | None = None
    email: str | None = None


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Code:
    session: str
    promotion_code: str | None


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Outcome:
    session: str
    succeed: bool = True


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Dunning:
    after_retries: Literal["canceled", "unpaid", "past_due"] = "canceled"
    retry_days: list[Annotated[int, Field(ge=1)]] = Field(default_factory=lambda: list(RETRY_DAYS))


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Happening:
    type: str
    object: dict[str, Any]
    created: int | None = None


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Redelivery:
    event: str


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Roll:
    endpoint: str
    keep_seconds: int = Field(ge=0)


def blueprint(account: Account, deliveries: Deliveries) -> Blueprint:
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

    @levers.get("/clock")
    def show_clock() -> Answer:
        return {"now": account.store.now()}, 200

    @levers.post("/clock")
    def advance() -> Answer:
        life.advance(account.store, TypeAdapter(Advance).validate_json(request.get_data()).advance)
        account.store.save()
        return show_clock()

    @levers.post("/checkout")
    def complete_checkout() -> Answer:
        given = TypeAdapter(Checkout).validate_json(request.get_data())
        session = checkout.complete(
            account.store, given.session, given.payment_method, given.promotion_code, given.email
        )
        account.store.save()
        return session, 200

    @levers.post("/promotion_code")
    def enter_code() -> Answer:
        given = TypeAdapter(Code).validate_json(request.get_data())
        session = checkout.enter_code(account.store, given.session, given.promotion_code)
        account.store.save()
        return session, 200

    @levers.post("/authentication")
    def authenticate() -> Answer:
        given = TypeAdapter(Outcome).validate_json(request.get_data())
        session = checkout.authenticate(account.store, given.session, given.succeed)
        account.store.save()
        return session, 200

    @levers.post("/settlement")
    def settle_payment() -> Answer:
        given = TypeAdapter(Outcome).validate_json(request.get_data())
        session = checkout.settle(account.store, given.session, given.succeed)
        account.store.save()
        return session, 200

    @levers.post("/dunning")
    def set_dunning() -> Answer:
        given = TypeAdapter(Dunning).validate_json(request.get_data())
        account.store.after_retries, account.store.retry_days = given.after_retries, given.retry_days
        account.store.save()
        return asdict(given), 200

    @levers.post("/events")
    def let_happen() -> Answer:
        given = TypeAdapter(Happening).validate_json(request.get_data())
        with account.store.lock:
            event = events.announce(account.store, given.type, given.object)
            event["created"] = event["created"] if given.created is None else given.created
        account.store.save()
        return event, 201

    @levers.get("/webhooks")
    def show_webhooks() -> Answer:
        return asdict(deliveries.switches) | {"outstanding": deliveries.outstanding()}, 200

    @levers.post("/webhooks")
    def switch_webhooks() -> Answer:
        deliveries.change(TypeAdapter(dict[str, Any]).validate_json(request.get_data()))
        return show_webhooks()

    @levers.delete("/webhooks")
    def clear_webhooks() -> Answer:
        deliveries.clear()
        account.store.save()
        return show_webhooks()

    @levers.get("/deliveries")
    def list_deliveries() -> Answer:
        return deliveries.list(request.args.get("event")), 200

    @levers.post("/deliveries")
    def redeliver() -> Answer:
        deliveries.redeliver(TypeAdapter(Redelivery).validate_json(request.get_data()).event)
        return [], 201

    @levers.post("/secrets")
    def roll_secret() -> Answer:
        given = TypeAdapter(Roll).validate_json(request.get_data())
        secret = webhook_endpoints.roll(account.store, given.endpoint, given.keep_seconds)
        account.store.save()
        return {"secret": secret}, 201

    @levers.errorhandler(Refusal)
    def pass_on(refusal: Refusal) -> Answer:
        return {"error": str(refusal)}, refusal.status

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

    def now(self) -> int:
        """Stripe's own time."""
        return int(self.send("GET", "clock")["now"])

    def advance(self, seconds: int) -> None:
        """Let time pass at Stripe, with all that falls due on the way. It does not go back."""
        self.send("POST", "clock", {"advance": seconds})

    def complete_checkout(
        self,
        session: str,
        payment_method: str | None = "pm_card_visa",
        promotion_code: str | None = None,
        email: str | None = None,
    ) -> dict[str, Any]:
        """What a customer does on Stripe's page. Answers the session, which 3-D Secure leaves open."""
        typed = {"payment_method": payment_method, "promotion_code": promotion_code, "email": email}
        done: dict[str, Any] = self.send("POST", "checkout", {"session": session, **typed})
        return done

    def enter_code(self, session: str, promotion_code: str | None) -> dict[str, Any]:
        """Apply a promotion code to an open Checkout session, or none. Answers the session."""
        done: dict[str, Any] = self.send(
            "POST", "promotion_code", {"session": session, "promotion_code": promotion_code}
        )
        return done

    def authenticate(self, session: str, succeed: bool = True) -> dict[str, Any]:
        """3-D Secure, after `complete_checkout` with such a card. Answers the session."""
        done: dict[str, Any] = self.send("POST", "authentication", {"session": session, "succeed": succeed})
        return done

    def settle_payment(self, session: str, succeed: bool = True) -> dict[str, Any]:
        """What the bank does days after `complete_checkout` with a bank account. Answers the session."""
        done: dict[str, Any] = self.send("POST", "settlement", {"session": session, "succeed": succeed})
        return done

    def dunning(self, **settings: Any) -> None:
        """What the account does about unpaid renewals: `retry_days`, `after_retries`, or as at first."""
        self.send("POST", "dunning", settings)

    def happen(self, type: str, object: dict[str, Any], created: int | None = None) -> dict[str, Any]:
        """An event out of the blue, with nothing behind it."""
        event: dict[str, Any] = self.send(
            "POST", "events", {"type": type, "object": object, "created": created}
        )
        return event

    def webhooks(self, **switches: Any) -> dict[str, Any]:
        """Turn some of `deliveries.Switches`; answers all of them and how many deliveries are outstanding."""
        turned: dict[str, Any] = self.send("POST", "webhooks", switches)
        return turned

    def deliveries(self, event: str | None = None) -> list[dict[str, Any]]:
        """The attempts, oldest first; all, or those of one event."""
        attempts: list[dict[str, Any]] = self.send(
            "GET", f"deliveries?event={event}" if event else "deliveries"
        )
        return attempts

    def redeliver(self, event: str) -> None:
        """What the Dashboard's Resend does."""
        self.send("POST", "deliveries", {"event": event})

    def settled(self, timeout: float = 10) -> None:
        """Wait until nothing is under way, waits for its retry or is held."""
        deadline = time.monotonic() + timeout
        while outstanding := self.send("GET", "webhooks")["outstanding"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{outstanding} deliveries are outstanding")
            time.sleep(0.01)

    def roll_secret(self, endpoint: str, keep_seconds: int = 0) -> str:
        """A new secret for a webhook endpoint; the old one signs too for so long."""
        return str(self.send("POST", "secrets", {"endpoint": endpoint, "keep_seconds": keep_seconds})["secret"])

    def clear(self) -> None:
        """No faults, latency, webhooks or events, nothing noted; calls that hang in a fault are cut off."""
        self.send("DELETE", "faults")
        self.latency(0)
        self.dunning()
        self.send("DELETE", "webhooks")
        self.send("DELETE", "requests")

    def send(self, method: str, lever: str, body: dict[str, Any] | None = None) -> Any:
        # a plain connection of its own, so that nothing counted or traced for API calls sees it
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request(method, f"/_sandbox/{lever}", None if body is None else json.dumps(body))
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status >= 400:
            raise ValueError(answer["error"])
        return answer
