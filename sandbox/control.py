"""/_sandbox: the levers behind the scenery. No part of Stripe's API, and no key is asked for.

Things go wrong by /_sandbox/faults, /latency, /payments and /webhooks; time moves by /clock and /trial, and
what an account does about unpaid invoices is set at /dunning; things happen by /checkout, /promotion_code,
/authentication, /settlement, /portal, /events and /secrets; what happened is at /events, /requests,
/connections and /deliveries, how things stand at /customers and /pending. `Control` pulls the same levers
from Python, in this process or another, and says what each does. The control page's forms come here too, as
`multipart/form-data`.
"""

import http.client
import json
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from flask import Blueprint, Request, request
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from sandbox import life, overview
from sandbox.account import MOST_CALLS, Account
from sandbox.deliveries import Deliveries, Switches
from sandbox.errors import Refusal
from sandbox.faults import Fault
from sandbox.resources import Call, checkout, events, portal, webhook_endpoints
from sandbox.store import RETRY_DAYS

Answer = tuple[Any, int]
T = TypeVar("T")


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Latency:
    seconds: float = Field(ge=0, le=3600)


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Calls:
    latest: int | None = Field(default=None, ge=0, le=MOST_CALLS)


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Advance:
    advance: int = Field(default=0, ge=0)  # seconds
    days: int = Field(default=0, ge=0)
    months: int = Field(default=0, ge=0, le=1200)


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Trial:
    subscription: str


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Declines:
    times: int | None = Field(default=None, ge=1)  # until cleared


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Visit:
    customer: str


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


def numbers(value: Any) -> Any:
    """A form has them in one field."""
    return [*map(int, value.replace(",", " ").split())] if isinstance(value, str) else value


Days = Annotated[list[Annotated[int, Field(ge=1, le=366)]], BeforeValidator(numbers), Field(max_length=20)]


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Dunning:
    after_retries: Literal["canceled", "unpaid", "past_due"] = "canceled"
    retry_days: Days = Field(default_factory=lambda: list(RETRY_DAYS))


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
        account.faults.add(read(Fault))
        return account.faults.list(), 201

    @levers.get("/faults")
    def list_faults() -> Answer:
        return account.faults.list(), 200

    @levers.post("/faults/clear")
    @levers.delete("/faults")
    def clear_faults() -> Answer:
        account.faults.clear()
        account.lines.cut(faulty_only=True)
        return [], 200

    @levers.get("/latency")
    def show_latency() -> Answer:
        return {"seconds": account.latency_seconds}, 200

    @levers.post("/latency")
    def set_latency() -> Answer:
        account.latency_seconds = read(Latency).seconds
        return show_latency()

    @levers.get("/requests")
    def list_requests() -> Answer:
        asked = TypeAdapter(Calls).validate_strings(request.args.to_dict())
        return account.log.list(asked.latest), 200

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
        given = read(Advance)
        life.advance(account.store, given.advance, days=given.days, months=given.months)
        account.store.save()
        return show_clock()

    @levers.post("/trial")
    def pass_trial() -> Answer:
        life.pass_trial(account.store, read(Trial).subscription)
        account.store.save()
        return show_clock()

    @levers.post("/checkout")
    def complete_checkout() -> Answer:
        given = read(Checkout)
        session = checkout.complete(
            account.store, given.session, given.payment_method, given.promotion_code, given.email
        )
        account.store.save()
        return session, 200

    @levers.post("/promotion_code")
    def enter_code() -> Answer:
        given = read(Code)
        session = checkout.enter_code(account.store, given.session, given.promotion_code)
        account.store.save()
        return session, 200

    @levers.post("/authentication")
    def authenticate() -> Answer:
        given = read(Outcome)
        session = checkout.authenticate(account.store, given.session, given.succeed)
        account.store.save()
        return session, 200

    @levers.post("/settlement")
    def settle_payment() -> Answer:
        given = read(Outcome)
        session = checkout.settle(account.store, given.session, given.succeed)
        account.store.save()
        return session, 200

    @levers.get("/payments")
    def show_declines() -> Answer:
        left = account.store.declines_left
        return {"declining": left != 0, "left": left}, 200

    @levers.post("/payments")
    def decline_payments() -> Answer:
        account.store.declines_left = read(Declines).times
        account.store.save()
        return show_declines()

    @levers.post("/payments/clear")
    @levers.delete("/payments")
    def accept_payments() -> Answer:
        account.store.declines_left = 0
        account.store.save()
        return show_declines()

    @levers.get("/dunning")
    def show_dunning() -> Answer:
        store = account.store
        return {"after_retries": store.after_retries, "retry_days": store.retry_days}, 200

    @levers.post("/dunning")
    def set_dunning() -> Answer:
        given = read(Dunning)
        account.store.after_retries, account.store.retry_days = given.after_retries, given.retry_days
        account.store.save()
        return show_dunning()

    @levers.get("/customers")
    def list_standings() -> Answer:
        return [asdict(standing) for standing in overview.standings(account.store)], 200

    @levers.get("/pending")
    def list_pending() -> Answer:
        return [asdict(waiting) for waiting in overview.pending(account.store)], 200

    @levers.post("/portal")
    def open_portal() -> Answer:
        call = Call(account.store, {"customer": read(Visit).customer}, account.public_url)
        with account.store.lock:
            session = portal.create_session(call)
        account.store.save()
        return session, 201

    @levers.get("/events")
    def list_events() -> Answer:
        shown = overview.latest_events(account.store, deliveries, request.args.get("before"))
        return [asdict(event) for event in shown], 200

    @levers.post("/events")
    def let_happen() -> Answer:
        given = read(Happening)
        with account.store.lock:
            event = events.written(account.store, given.type, given.object)
            event["created"] = event["created"] if given.created is None else given.created
        account.store.save()
        return event, 201

    @levers.get("/webhooks")
    def show_webhooks() -> Answer:
        return asdict(deliveries.switches) | {"outstanding": deliveries.outstanding()}, 200

    @levers.post("/webhooks")
    def switch_webhooks() -> Answer:
        deliveries.change(read_some(Switches))
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
        deliveries.redeliver(read(Redelivery).event)
        return [], 201

    @levers.post("/secrets")
    def roll_secret() -> Answer:
        given = read(Roll)
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


def read(kind: type[T]) -> T:
    """What is asked for, as JSON or by a form, where what was left empty was not given."""
    if is_form(request):
        return TypeAdapter(kind).validate_strings(fields())
    return TypeAdapter(kind).validate_json(request.get_data())


def read_some(kind: type[Any]) -> dict[str, Any]:
    """The members that are given, of many that may stay as they are."""
    if is_form(request):
        return {name: getattr(read(kind), name) for name in fields()}
    return TypeAdapter(dict[str, Any]).validate_json(request.get_data())


def is_form(request: Request) -> bool:
    """Only browsers send this: programs send JSON, and `curl -d` calls that a form, too."""
    return request.mimetype == "multipart/form-data"


def fields() -> dict[str, str]:
    """By name, the last of each: a box that is not ticked leaves the hidden field before it."""
    return {name: values[-1] for name, values in request.form.lists() if values[-1]}


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

    def advance(self, seconds: int = 0, *, days: int = 0, months: int = 0) -> None:
        """Let time pass at Stripe, with all that falls due on the way. It does not go back."""
        self.send("POST", "clock", {"advance": seconds, "days": days, "months": months})

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

    def pass_trial(self, subscription: str) -> None:
        """Let time pass to the end of a trial."""
        self.send("POST", "trial", {"subscription": subscription})

    def decline(self, times: int | None = None) -> None:
        """The next automatic charges fail, whatever the card; without a number all, until `accept`."""
        self.send("POST", "payments", {"times": times})

    def accept(self) -> None:
        """Cards decide again."""
        self.send("DELETE", "payments")

    def payments(self) -> dict[str, Any]:
        """Whether charges are declined by order, and how many still; None: all."""
        declines: dict[str, Any] = self.send("GET", "payments")
        return declines

    def customers(self) -> list[dict[str, Any]]:
        """The latest, and how their subscriptions stand."""
        standings: list[dict[str, Any]] = self.send("GET", "customers")
        return standings

    def pending(self) -> list[dict[str, Any]]:
        """The Checkouts that wait for a customer, for 3-D Secure or for a bank."""
        waiting: list[dict[str, Any]] = self.send("GET", "pending")
        return waiting

    def portal(self, customer: str) -> str:
        """The address of a portal session of theirs."""
        return str(self.send("POST", "portal", {"customer": customer})["url"])

    def events(self, before: str | None = None) -> list[dict[str, Any]]:
        """The latest, or those before one, newest first, each with what became of its deliveries."""
        events: list[dict[str, Any]] = self.send("GET", f"events?before={before}" if before else "events")
        return events

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
        """No faults, latency, declines, webhooks or events, nothing noted; calls that hang are cut off."""
        self.send("DELETE", "faults")
        self.latency(0)
        self.accept()
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
