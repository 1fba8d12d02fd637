"""Tells webhook endpoints of events: signed, in no promised order, and again after a failure.

`collect` takes up the events a call has left; a few threads post them when they fall due and note each
attempt; what is dropped is noted, too. `Switches` holds what is ordered to go wrong on the way. Nothing
outlives `close`: what is still due then is never sent, and a restarted sandbox knows it only as an event with
pending webhooks.
"""

import hashlib
import hmac
import http.client
import json
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import count, takewhile
from typing import Annotated, Literal
from urllib.parse import urlsplit, urlunsplit

import stripe
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from sandbox.resources import events, webhook_endpoints
from sandbox.store import Json, Store

# With `reverse`, what happens within this time of a first event is one burst.
BURST_SECONDS = 0.2

HEADERS = {
    "Content-Type": "application/json; charset=utf-8",
    "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
}

State = Literal["under way", "held", "waiting"]
Seconds = Annotated[float, Field(ge=0, le=86400)]


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Switches:
    delay: Seconds | tuple[Seconds, Seconds] = 0.0  # or from … to
    double: float = Field(default=0.0, ge=0, le=1)  # share of deliveries that come twice
    drop: float = Field(default=0.0, ge=0, le=1)  # share that is never sent, nor tried again
    reverse: bool = False  # the last event of a burst first, one at a time
    same_second: bool = False  # Stripe's clock stands still
    paused: bool = False  # all is held, and due when released
    seed: int | None = None  # of the chances above; giving one starts them afresh
    retry_seconds: tuple[float, ...] = (3.0, 60.0, 3600.0)  # as often as for a test key, if not over hours
    timeout_seconds: float = Field(default=10.0, gt=0)
    deliverers: int = Field(default=4, ge=1, le=64)  # how many posts at once; with 1 the order is kept
    api_version: str = stripe.api_version  # of the events to come


@dataclass(order=True)
class Delivery:
    due: float  # of time.monotonic
    order: int  # among those due at one instant
    event: str = field(compare=False)
    endpoint: str = field(compare=False)
    attempt: int = field(default=1, compare=False)


@dataclass(frozen=True)
class Due:
    """What is still to come of an event at an endpoint."""

    event: str
    endpoint: str
    attempt: int
    state: State
    seconds: float  # until then


@dataclass
class Attempt:
    event: str
    type: str
    endpoint: str
    attempt: int  # 0 where it was never sent
    at: int  # Stripe's time
    status: int | None = None
    failure: str | None = None  # why there is no status
    dropped: bool = False  # by order
    seconds: float = 0.0

    @property
    def succeeded(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class Deliveries:
    """`changed` guards what is here. Nobody waits for the store's lock while holding it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.last_seen = next(reversed(store.collection(events.KIND)), None)
        self.moving_clock = store.clock
        self.changed = threading.Condition()
        self.switches = Switches()
        self.chance = random.Random()  # noqa: S311  # bad luck to order, no secret
        self.numbers = count(1)
        self.burst_ends = 0.0
        self.queue: list[Delivery] = []
        self.under_way: list[Delivery] = []
        self.sockets: set[socket.socket] = set()
        self.threads: list[threading.Thread] = []
        self.attempts: deque[Attempt] = deque(maxlen=10_000)
        self.succeeded: set[tuple[str, str]] = set()
        self.closed = False

    def collect(self) -> None:
        """Take up the events since the last time."""
        with self.store.lock:
            newest_first = reversed(self.store.collection(events.KIND).values())
            new = [*takewhile(lambda event: event["id"] != self.last_seen, newest_first)][::-1]
            for event in new:
                self.last_seen = event["id"]
                if self.switches.api_version != stripe.api_version:
                    events.render_in(event, self.switches.api_version)
            told = [(e, to["id"]) for e in new for to in events.wanting(self.store, e["type"])]
            now = self.store.now()
        if told:
            self.store.save()  # what somebody heard of has happened, over a restart too
        with self.changed:
            for event, endpoint_id in told:
                self.schedule(event, endpoint_id, at=now)

    def schedule(self, event: Json, endpoint: str, *, at: int) -> None:
        now = time.monotonic()
        if self.switches.reverse and now >= self.burst_ends:
            self.burst_ends = now + BURST_SECONDS
        begins = self.burst_ends if self.switches.reverse else now
        if self.chance.random() < self.switches.drop:
            self.attempts.append(Attempt(event["id"], event["type"], endpoint, 0, at, dropped=True))
            return
        for _ in range(2 if self.chance.random() < self.switches.double else 1):
            order = next(self.numbers) * (-1 if self.switches.reverse else 1)
            self.push(Delivery(begins + self.delay(), order, event["id"], endpoint))

    def delay(self) -> float:
        delay = self.switches.delay
        return self.chance.uniform(*delay) if isinstance(delay, tuple) else delay

    def push(self, delivery: Delivery) -> None:
        if self.closed:
            return
        heappush(self.queue, delivery)
        while len(self.threads) < self.switches.deliverers:
            self.threads.append(threading.Thread(target=self.work, name="deliverer"))
            self.threads[-1].start()
        self.changed.notify_all()

    def work(self) -> None:
        while delivery := self.next():
            self.attempt(delivery)
            with self.changed:
                self.under_way.remove(delivery)
                self.changed.notify_all()

    def next(self) -> Delivery | None:
        """Wait for what is due; None when there is nothing more to do."""
        with self.changed:
            while not self.closed:
                at_once = 1 if self.switches.reverse else self.switches.deliverers
                may = bool(self.queue) and not self.switches.paused and len(self.under_way) < at_once
                seconds = self.queue[0].due - time.monotonic() if may else None
                if seconds is not None and seconds <= 0:
                    self.under_way.append(heappop(self.queue))
                    return self.under_way[-1]
                self.changed.wait(seconds)
        return None

    def attempt(self, delivery: Delivery) -> None:
        with self.store.lock:
            event = self.store.collection(events.KIND)[delivery.event]
            endpoint = self.store.collection(webhook_endpoints.KIND).get(delivery.endpoint)
            if not endpoint or endpoint["status"] != "enabled":
                return
            url, now = endpoint["url"], self.store.now()
            body = json.dumps(event, indent=2, ensure_ascii=False).encode()
            sent = int(time.time())  # the receiver's clock does not run ahead with the account's
            signed = signature(body, webhook_endpoints.secrets_of(endpoint, now), sent)
        attempt = Attempt(event["id"], event["type"], endpoint["id"], delivery.attempt, now)
        began = time.monotonic()
        try:
            attempt.status = self.post(url, body, {**HEADERS, "Stripe-Signature": signed})
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no such address
            attempt.failure = f"{type(error).__name__}: {error}"
        attempt.seconds = time.monotonic() - began
        self.note(delivery, attempt)

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        address = urlsplit(url)
        secure = address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(address.hostname or "", address.port, timeout=self.switches.timeout_seconds)
        connection.connect()
        line = connection.sock
        try:
            with self.changed:
                if self.closed:
                    raise ConnectionAbortedError("the sandbox stops")
                self.sockets.add(line)
            target = urlunsplit(("", "", address.path or "/", address.query, ""))
            connection.request("POST", target, body, headers)
            response = connection.getresponse()
            response.read(65536)  # or closing would reset the line before the receiver has said it all
            return response.status
        finally:
            with self.changed:
                self.sockets.discard(line)
            connection.close()

    def note(self, delivery: Delivery, attempt: Attempt) -> None:
        pair = (delivery.event, delivery.endpoint)
        with self.changed:
            self.attempts.append(attempt)
            is_first_success = attempt.succeeded and pair not in self.succeeded
            retries = self.switches.retry_seconds
            if attempt.succeeded:
                self.succeeded.add(pair)
            elif delivery.attempt <= len(retries):
                due = time.monotonic() + retries[delivery.attempt - 1]
                self.push(replace(delivery, due=due, attempt=delivery.attempt + 1))
        if is_first_success:
            with self.store.lock:
                event = self.store.collection(events.KIND)[delivery.event]
                event["pending_webhooks"] = max(0, event["pending_webhooks"] - 1)
            self.store.save()

    def redeliver(self, event_id: str) -> None:
        """Tell of it once more, whatever became of it before."""
        with self.store.lock:
            event = self.store.find(events.KIND, event_id)
            endpoints = [endpoint["id"] for endpoint in events.wanting(self.store, event["type"])]
        with self.changed:
            for endpoint in endpoints:
                self.push(Delivery(time.monotonic(), next(self.numbers), event_id, endpoint))

    def change(self, given: Json) -> None:
        """Turn some switches; the others stay."""
        with self.changed:
            before = self.switches
            self.switches = TypeAdapter(Switches).validate_json(json.dumps(asdict(before) | given))
            if "seed" in given:
                self.chance.seed(given["seed"])
            if before.paused and not self.switches.paused:
                self.release()
            self.changed.notify_all()
        if before.same_second != self.switches.same_second:
            self.stop_clock(self.switches.same_second)

    def release(self) -> None:
        """What fell due meanwhile is due at one instant, so that its order is what decides."""
        now = time.monotonic()
        for delivery in self.queue:
            delivery.due = max(delivery.due, now)
        heapify(self.queue)

    def stop_clock(self, stopped: bool) -> None:
        instant = self.store.clock()
        if stopped:
            self.moving_clock = self.store.clock
        self.store.clock = (lambda: instant) if stopped else self.moving_clock

    def outstanding(self) -> int:
        with self.changed:
            return len(self.queue) + len(self.under_way)

    def list(self, event: str | None = None) -> list[Json]:
        with self.changed:
            return [asdict(attempt) for attempt in self.attempts if event in (None, attempt.event)]

    def fates(self, events: set[str]) -> tuple[Sequence[Attempt], Sequence[Due]]:
        """What was tried for some events, oldest first, and what is still to come, soonest first."""
        with self.changed:
            now = time.monotonic()
            tried = [attempt for attempt in self.attempts if attempt.event in events]
            state: State = "held" if self.switches.paused else "waiting"
            due = [(delivery, state) for delivery in sorted(self.queue) if delivery.event in events]
            posting: State = "under way"
            due = [(delivery, posting) for delivery in self.under_way if delivery.event in events] + due
        return tried, [Due(d.event, d.endpoint, d.attempt, how, max(0.0, d.due - now)) for d, how in due]

    def clear(self) -> None:
        """As at the start: no endpoints, no events, nothing to deliver, nothing noted, all switches back."""
        with self.store.lock:
            self.store.collection(webhook_endpoints.KIND).clear()
            self.store.collection(events.KIND).clear()
        self.change(asdict(Switches()))
        with self.changed:
            self.queue.clear()
            self.cut()
            self.changed.wait_for(lambda: not self.under_way)
            self.queue.clear()  # of what has failed by being cut
            self.attempts.clear()
            self.succeeded.clear()

    def cut(self) -> None:
        for line in self.sockets:
            with suppress(OSError):  # the receiver was faster
                line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.cut()
            self.changed.notify_all()
        for thread in self.threads:
            thread.join()


def signature(body: bytes, secrets: list[str], sent: int) -> str:
    signed = f"{sent}.".encode() + body
    hashes = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={sent}", *(f"v1={value}" for value in hashes)])
