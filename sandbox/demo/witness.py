"""Notes what passes between browser, Stripe and service, and changes none of it.

A webhook counts as arrived when the service has answered 2xx, which is when it is stored. What the service
answers about a Checkout tells when the browser left, and when its return had the document; of one that nobody
was seen to leave for, nothing is noted. From these facts `race` says which came first. Kept in memory, the
latest only.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream, StartResponse, WSGIApplication, WSGIEnvironment

Json = dict[str, Any]

WEBHOOK = "/webhooks/stripe"
CHECKOUT = "/api/subscriptions/checkout"
LARGEST_EVENT = 1024 * 1024
MOST_ARRIVALS, MOST_PURCHASES = 200, 20
OF_A_PURCHASE = ("checkout.session.", "customer.subscription.", "invoice.")


@dataclass(frozen=True)
class Arrival:
    """A webhook that was taken; `at` is when the service said so."""

    at: float
    status: int
    event: str
    type: str
    about: str | None
    subscription: str | None


@dataclass(frozen=True)
class Purchase:
    """One Checkout as this process saw it: when the browser left and came back, and what it was told then."""

    session: str
    left: float
    returned: float | None = None
    answered: float | None = None
    version: int | None = None
    subscription: str | None = None


@dataclass
class Facts:
    """What was noted, by any thread."""

    clock: Callable[[], float] = time.time
    lock: threading.Lock = field(default_factory=threading.Lock)
    arrivals: deque[Arrival] = field(default_factory=lambda: deque(maxlen=MOST_ARRIVALS))
    purchases: dict[str, Purchase] = field(default_factory=dict)

    def arrived(self, status: int, body: bytes) -> None:
        try:
            event = json.loads(body)
            thing = event["data"]["object"]
            told = Arrival(
                at=self.clock(),
                status=status,
                event=str(event["id"]),
                type=str(event["type"]),
                about=thing.get("id"),
                subscription=subscription_of(thing),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # taken, and nothing the page could show
        with self.lock:
            self.arrivals.append(told)

    def left(self, answer: Json) -> None:
        """The browser was given a Checkout to go to; the same one again, where it was open already."""
        session, now = str(answer["session_id"]), self.clock()
        with self.lock:
            purchase = self.purchases.pop(session, None)
            self.purchases[session] = purchase or Purchase(session, left=now)  # the latest is last
            while len(self.purchases) > MOST_PURCHASES:
                del self.purchases[next(iter(self.purchases))]

    def returned(self, session: str) -> None:
        """Anybody may say so: of a Checkout that was left for, once."""
        now = self.clock()
        with self.lock:
            purchase = self.purchases.get(session)
            if purchase and purchase.returned is None:
                self.purchases[session] = replace(purchase, returned=now)

    def answered(self, answer: Json) -> None:
        """The browser was told how its purchase stands."""
        document = answer.get("entitlements")
        if not document:
            return
        told = {"version": document["version"], "subscription": document["stripe"]["subscription"]}
        session, now = str(answer["session_id"]), self.clock()
        with self.lock:
            purchase = self.purchases.get(session)
            if purchase and purchase.answered is None:
                self.purchases[session] = replace(purchase, answered=now, **told)

    def shown(self) -> Json:
        """The latest webhooks, newest first, and how the latest purchase went."""
        with self.lock:
            arrivals = list(self.arrivals)
            purchases = list(self.purchases.values())
        return {
            "arrivals": [asdict(arrival) for arrival in reversed(arrivals)][:20],
            "race": race(purchases[-1], arrivals) if purchases else None,
        }


def subscription_of(thing: Json) -> str | None:
    """The subscription that what an event is about is, or belongs to."""
    if thing.get("object") == "subscription":
        return thing.get("id")
    details = (thing.get("parent") or {}).get("subscription_details") or {}
    return thing.get("subscription") or details.get("subscription")  # an invoice's, before and since 2025-03-31


def race(purchase: Purchase, arrivals: Iterable[Arrival]) -> Json:
    """The purchase, the first webhook that told of it, and which of the two the document came from.

    `return`: no webhook had arrived when the browser was told. `webhook`: one had, before the browser was back.
    `either`: it arrived in between; the document is the same whichever it was.
    """
    since = [a for a in arrivals if a.at >= purchase.left and a.type.startswith(OF_A_PURCHASE)]
    bought = {purchase.subscription, *(a.subscription for a in since if a.about == purchase.session)} - {None}
    first = next((a for a in since if a.about == purchase.session or a.subscription in bought), None)
    came_from = None
    if purchase.answered is not None:
        came_from = "either"
        if first is None or first.at > purchase.answered:
            came_from = "return"
        elif purchase.returned is None or first.at < purchase.returned:
            came_from = "webhook"
    return {**asdict(purchase), "webhook": first and asdict(first), "came_from": came_from}


class Witness:
    """The service, overheard."""

    def __init__(self, service: "WSGIApplication", facts: Facts) -> None:
        self.service = service
        self.facts = facts

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        if (method, path) == ("POST", WEBHOOK):
            return self.webhook(environ, start_response)
        if (method, path) == ("POST", CHECKOUT):
            return self.overheard(environ, start_response, self.facts.left)
        if method == "GET" and path.startswith(f"{CHECKOUT}/"):
            return self.overheard(environ, start_response, self.facts.answered)
        return self.service(environ, start_response)

    def webhook(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        read = Overread(environ["wsgi.input"])
        status = Status(start_response)
        answer = self.service({**environ, "wsgi.input": read}, status)
        if 200 <= status.code < 300:
            self.facts.arrived(status.code, b"".join(read.parts))
        return answer

    def overheard(
        self, environ: "WSGIEnvironment", start_response: "StartResponse", note: Callable[[Json], None]
    ) -> Iterable[bytes]:
        status = Status(start_response)
        answer = self.service(environ, status)
        try:
            body = b"".join(answer)
        finally:
            getattr(answer, "close", lambda: None)()
        if status.code == 200:
            with suppress(ValueError, KeyError, TypeError):  # whatever was said, it is the caller's
                note(json.loads(body))
        return [body]


class Status:
    """Passes on how an answer begins, and remembers its number."""

    def __init__(self, start_response: "StartResponse") -> None:
        self.start_response = start_response
        self.code = 0

    def __call__(self, status: str, *rest: Any) -> Any:
        self.code = int(status.partition(" ")[0])
        return self.start_response(status, *rest)


class Overread:
    """A request's body that keeps what was read of it, up to the largest the service takes."""

    def __init__(self, stream: "InputStream") -> None:
        self.stream = stream
        self.parts: list[bytes] = []
        self.size = 0

    def kept(self, part: bytes) -> bytes:
        if self.size <= LARGEST_EVENT:
            self.parts.append(part)
            self.size += len(part)
        return part

    def read(self, size: int = -1, /) -> bytes:
        return self.kept(self.stream.read(size))

    def readline(self, size: int = -1, /) -> bytes:
        return self.kept(self.stream.readline(size))

    def readlines(self, hint: int = -1, /) -> list[bytes]:
        return [self.kept(line) for line in self.stream.readlines(hint)]

    def __iter__(self) -> Iterable[bytes]:
        return map(self.kept, self.stream)
