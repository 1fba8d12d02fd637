"""What may a tenant use? Asked of the billing service, and answered while that is away, too.

Copy this file into your service. It needs Python 3.9 or newer, and nothing else.

    billing = BillingClient(
        os.environ["BILLING_URL"],
        os.environ["BILLING_TOKEN"],
        fallback={"export": True, "sso": False, "projects": 3},
    )
    billing.enabled("t_8f2", "sso")
    billing.allows("t_8f2", "projects", used=49)

One client per process, shared by its threads and safe to fork. Documents are kept for as long as the service
allows and looked up again by `ETag`, by one thread for each tenant. No answer takes longer than `timeout`,
whatever the network does. Where the service fails, the last copy serves on for as long as the service allowed,
a day at most and never past a known end; then the declared fallbacks do. Only slips of the caller raise.

`follow` keeps a copy of your own up to date from the service's feed of changes, `keep_warm` the client's.
"""

from __future__ import annotations

import http.client
import io
import json
import logging
import os
import queue
import re
import socket
import ssl
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from email.message import Message
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

TIMEOUT_SECONDS = 2.0  # for an answer: resolver, connection, every byte
TENANTS = 10_000  # documents kept; beyond it the one that was not asked for the longest goes

# How long a document may serve at most. The service may allow less, and does where an end is known.
FRESH_SECONDS = 30
SPARE_SECONDS = 60  # longer, for those who come while somebody looks it up
NEED_SECONDS = 86_400  # longer, while the service fails

PAUSE_SECONDS = 5.0  # after a failure nobody asks for so long; then one does, and the others go on without
LONGEST_PAUSE_SECONDS = 30.0  # where the service names one
SLOW_PAUSE_SECONDS = 10.0  # for the tenant whose answer did not come in time: others are asked about first
AGAIN_SECONDS = (0.1, 0.3)  # before a version that ought to be there is asked for again
MISSED_SECONDS = 1.0  # for so long nobody insists on a version that has just been missed
COMPLAIN_SECONDS = 60.0  # between two lines in the log about the same thing

POLL_SECONDS = 5.0
PAGE = 100  # changes asked for at once
PAGE_SECONDS = 10.0
BACK_OFF_SECONDS = 60.0
POLLS_IN_STEP = 3  # for so many the feed's last word holds
LOOKED_UP_SECONDS = 600  # so long the feed keeps a copy fresh: it cannot say that the service's clock stands

DOCUMENT_BYTES = 256 * 1024
KEPT_OPEN = 8  # connections
IDLE_SECONDS = 30.0  # what lies idle for longer may have been forgotten by somebody on the way

NEVER = float("-inf")
STEPS = (".", "..")  # what a proxy takes for a step in the path, the service has no document of
TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e]{1,100}")')
CURSOR = re.compile(r"([!-~]{1,100})-(\d{1,20})")
FAILURES = (OSError, http.client.HTTPException, ValueError, RuntimeError)  # of a network, and of who lies

log = logging.getLogger("billing_client")

Origin = Literal["fresh", "revalidated", "changed", "stale", "fallback"]


# ---- what callers get


class UndeclaredFeature(LookupError):
    """The calling program asks for a feature it has declared no fallback for."""


@dataclass(frozen=True)
class Feature:
    """Whether it may be used, and how much of it. `limit` is None without a limit, and 0 where it is off."""

    enabled: bool
    limit: int | None

    def allows(self, used: int) -> bool:
        """Whether there may be one more."""
        return self.enabled and (self.limit is None or used < self.limit)


@dataclass(frozen=True)
class Document:
    """What a tenant may use, and how we know. A fallback's version is 0, and its `body` is empty."""

    tenant_id: str
    version: int
    features: Mapping[str, Feature] = field(repr=False)
    body: Mapping[str, Any] = field(repr=False, default_factory=dict)  # as the service wrote it
    as_of: datetime | None = None
    valid_until: datetime | None = None
    origin: Origin = "fresh"
    is_behind: bool = False  # the version that was asked for is not there yet, or nobody could be asked


@dataclass(frozen=True)
class Change:
    """A tenant of the feed as it is now; `document` is None where the service has forgotten it."""

    tenant_id: str
    document: Document | None
    lasts_until: datetime | None = None  # time may change the document then


@dataclass(frozen=True)
class Batch:
    """Changes in their order. Apply them and move your cursor from `after` to `cursor` in one transaction.

    Within an `epoch` a version that is lower than yours is older. A new epoch is another database of the
    service's, restored or promoted, told from its beginning: all of it holds, lower versions included. Where
    that has no tenant yet, a batch without changes leads there.
    """

    changes: tuple[Change, ...]
    after: str | None
    cursor: str
    epoch: str


class BillingClient:
    """The billing service, from one process.

    `fallback` has each feature this program asks for, and what holds while nobody knows: True, False, a limit,
    or None for no limit. `context` is for an authority of your own. The environment's proxies are not used.
    """

    def __init__(
        self,
        url: str,
        token: str,
        fallback: Mapping[str, bool | int | None],
        *,
        timeout: float = TIMEOUT_SECONDS,
        tenants: int = TENANTS,
        context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = _Service(url, token, context)
        self._fallback = MappingProxyType({name: _declared(name, value) for name, value in fallback.items()})
        self._timeout = timeout
        self._most = tenants
        self._clock = clock
        self._lock = threading.Lock()  # around all that follows; nothing waits inside
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._counters = dict.fromkeys(
            ("fresh", "revalidated", "changed", "stale", "fallback", "behind", "absent", "errors"), 0
        )
        self._complained: dict[str, float] = {}
        self._is_failing = False
        self._rests_until = NEVER
        self._epoch: str | None = None  # the feed's, where it is followed
        self._in_step_until = NEVER
        _clients.add(self)

    def __repr__(self) -> str:
        return f"<BillingClient {self._service.address}>"

    def enabled(self, tenant: str, feature: str, *, at_least: int = 0) -> bool:
        """Whether the tenant may use it."""
        return self._feature(tenant, feature, at_least).enabled

    def limit(self, tenant: str, feature: str, *, at_least: int = 0) -> int | None:
        """How much of it: None is without end, 0 is nothing. What has no limits is None while it is on."""
        return self._feature(tenant, feature, at_least).limit

    def allows(self, tenant: str, feature: str, used: int, *, at_least: int = 0) -> bool:
        """Whether the tenant, who has used so much, may use one more."""
        return self._feature(tenant, feature, at_least).allows(used)

    def get(self, tenant: str, at_least: int = 0) -> Document:
        """The tenant's document, of version `at_least` if that can be had in time, and marked if not."""
        if not tenant:
            raise ValueError("tenant: must not be empty")
        until = time.monotonic() + self._timeout
        document = self._found(tenant, at_least, until)
        if document.version < at_least:
            document = self._insisted(document, at_least, until)
        with self._lock:
            self._counters[document.origin] += 1
            self._counters["behind"] += document.is_behind
        return document

    def counters(self) -> dict[str, int]:
        """How often a document came from where, since the start; and what went wrong."""
        with self._lock:
            return dict(self._counters)

    def close(self) -> None:
        """Let go of the connections that are kept open."""
        self._service.close()

    def follow(
        self,
        *,
        load: Callable[[], str | None],
        apply: Callable[[Batch], object],
        stop: threading.Event,
        caught_up: Callable[[str | None], object] | None = None,
        every: float = POLL_SECONDS,
    ) -> None:
        """Hand `apply` all that changes, from the cursor that `load` knows, until `stop` is set.

        What fails, here or in your functions, is logged and comes again. Whenever the end is reached,
        `caught_up` is told the epoch: what you hold of another one is gone from the service.
        """
        last: _Page | None = None

        def turn() -> bool:
            nonlocal last
            cursor = load()
            last = self._page(cursor, last.tag if last and last.cursor == cursor else None)
            if last.batch:
                apply(last.batch)
            elif caught_up:
                caught_up(_epoch(cursor))
            return last.batch is not None

        self._repeat(turn, stop, every)

    def keep_warm(self, *, stop: threading.Event, every: float = POLL_SECONDS) -> None:
        """Have the feed fill and refresh what is kept here, until `stop` is set. Begins with all tenants.

        While it keeps in step, reads need no request, and see a change after `every` seconds. A job for a
        thread of each process: threads do not survive a fork.
        """
        last: _Page | None = None

        def turn() -> bool:
            nonlocal last
            last = self._page(last.cursor, last.tag) if last else self._page(None, None)
            self._take_page(last, POLLS_IN_STEP * every)
            return last.batch is not None

        self._repeat(turn, stop, every)

    # -- one tenant

    def _feature(self, tenant: str, feature: str, at_least: int) -> Feature:
        declared = self._fallback.get(feature)
        if declared is None:
            raise UndeclaredFeature(f"{feature!r} has no fallback: declare one where the client is made")
        found = self.get(tenant, at_least).features.get(feature)
        if found is None:
            with self._lock:
                self._counters["absent"] += 1
            self._complain(feature, f"The billing service does not know feature {feature!r}")
            return declared
        return found

    def _found(self, tenant: str, at_least: int, until: float) -> Document:
        now = self._clock()
        with self._lock:
            held = self._held(tenant)
            copy = held.copy
            is_old = held.lacks(at_least, now)
            if copy and not is_old and self._is_fresh(copy, now):
                return copy.document
            flight, leads = held.flight, held.flight is None
            if flight is None:
                if tenant in STEPS or not self._may_ask(held, is_old, now):
                    return self._in_need(tenant, held, now)
                flight = held.flight = _Flight()
            elif self._is_failing:
                return self._in_need(tenant, held, now)
            elif copy and not is_old and now < copy.spare:
                return copy.document
        if leads:
            self._fly(flight, tenant, held, until)
        else:
            flight.over.wait(until - time.monotonic())
        with self._lock:
            return flight.document or self._in_need(tenant, held, self._clock())

    def _insisted(self, document: Document, at_least: int, until: float) -> Document:
        """A replica or a race may be a moment behind: ask again, briefly. Then what there is, marked."""
        for seconds in AGAIN_SECONDS:
            with self._lock:
                is_missed = not self._held(document.tenant_id).lacks(at_least, self._clock())
            has_time = until - time.monotonic() > self._timeout / 2 + seconds  # a hasty question would fail
            if document.origin not in ("changed", "revalidated") or is_missed or not has_time:
                break
            time.sleep(seconds)
            document = self._found(document.tenant_id, at_least, until)
            if document.version >= at_least:
                return document
        else:
            with self._lock:
                self._held(document.tenant_id).missed = at_least, self._clock() + MISSED_SECONDS
        return replace(document, is_behind=True)

    def _held(self, tenant: str) -> _Tenant:
        held = self._tenants.get(tenant)
        if held is None:
            held = self._tenants[tenant] = _Tenant()
            if len(self._tenants) > self._most:
                self._tenants.popitem(last=False)
        self._tenants.move_to_end(tenant)
        return held

    def _is_fresh(self, copy: _Copy, now: float) -> bool:
        if now < copy.fresh:
            return True
        is_in_step = now < self._in_step_until and copy.epoch == self._epoch
        return is_in_step and now < min(copy.asked + LOOKED_UP_SECONDS, copy.last)

    def _may_ask(self, held: _Tenant, is_old: bool, now: float) -> bool:
        """Whether it makes sense. While the service fails, to be the one who asks is to put off the next."""
        if now < held.rests_until and not is_old:
            return False
        if self._is_failing:
            if now < self._rests_until:
                return False
            self._rests_until = now + PAUSE_SECONDS
        return True

    def _in_need(self, tenant: str, held: _Tenant, now: float) -> Document:
        """Nobody can be asked: the copy for as long as it may serve, then what is declared."""
        copy = held.copy
        if copy is None or now >= copy.last:
            return Document(tenant, 0, self._fallback, origin="fallback")
        return copy.document if self._is_fresh(copy, now) else replace(copy.document, origin="stale")

    def _fly(self, flight: _Flight, tenant: str, held: _Tenant, until: float) -> None:
        try:
            flight.document = self._asked(tenant, held, until)
        finally:
            with self._lock:
                held.flight = None
            flight.over.set()

    def _asked(self, tenant: str, held: _Tenant, until: float) -> Document | None:
        """What the service says now; None where it says nothing that could be used."""
        copy, epoch, sent = held.copy, self._epoch, self._clock()
        path = f"/api/tenants/{quote(tenant, safe='', errors='surrogatepass')}/entitlements"
        try:
            answer = self._service.get(path, copy.asks_with if copy else None, until, DOCUMENT_BYTES)
            if answer.status == 404 and answer.code == "tenant_not_found":
                return self._forget(tenant, held, sent)
            document = _document_of(answer, tenant, copy)
        except _Failure as failure:
            self._fail(held, failure)
            return None
        tag = copy.tag if copy and answer.status == 304 else answer.tag
        return self._take(held, _copy(document, tag, answer, sent, epoch))

    def _take(self, held: _Tenant, taken: _Copy) -> Document | None:
        self._recover()
        now = self._clock()
        with self._lock:
            held.is_slow = False
            old = held.copy
            if taken.asked < held.forgotten_at:
                return taken.document
            if old is None or self._supersedes(taken, old, now):
                held.rests_until = NEVER
                is_known = old is not None and taken.tag is not None and taken.tag == old.tag
                if taken.last > taken.asked or not is_known:  # what may not be kept leaves its equal in place
                    held.copy = replace(taken, document=replace(taken.document, origin="fresh"))
                return taken.document
            if taken.asked < old.asked:
                return old.document  # the feed was faster
            self._counters["errors"] += 1
            held.rests_until = now + PAUSE_SECONDS
        self._complain("back", "The billing service went back to an earlier version: it is not taken")
        return None

    def _supersedes(self, taken: _Copy, old: _Copy, now: float) -> bool:
        """Whether it holds instead. A lower version is another database's, or somebody is behind.

        It is the former if the feed says so, or if Stripe has confirmed it later than what we hold.
        """
        new, held = taken.document, old.document
        if new.version >= held.version or now >= old.last:
            return True
        if old.epoch is not None and old.epoch != taken.epoch == self._epoch:
            return True
        return new.as_of is not None and held.as_of is not None and new.as_of > held.as_of

    def _forget(self, tenant: str, held: _Tenant, sent: float) -> Document:
        """The service did not know this tenant, so no copy from before may serve."""
        self._recover()
        with self._lock:
            if held.copy is None or held.copy.asked <= sent:
                held.copy = None
                held.rests_until = self._clock() + PAUSE_SECONDS
        return Document(tenant, 0, self._fallback, origin="fallback")

    def _fail(self, held: _Tenant, failure: _Failure) -> None:
        if not failure.is_general:
            self._recover()
        with self._lock:
            self._counters["errors"] += 1
            now = self._clock()
            # Too late again, though others were answered in between: that is about this tenant.
            is_general = failure.is_general and not (failure.is_late and held.is_slow and not self._is_failing)
            if is_general:
                self._is_failing, self._rests_until = True, now + failure.pause
            else:
                held.rests_until = now + failure.pause
            if failure.is_late:
                held.is_slow, held.rests_until = True, now + SLOW_PAUSE_SECONDS
        whom = "fails" if is_general else "fails for some tenant"
        self._complain(whom, f"The billing service {whom} ({failure}): copies and fallbacks serve")

    def _recover(self) -> None:
        if self._is_failing:
            self._is_failing = False
            log.info("The billing service answers again")

    def _complain(self, about: str, message: str) -> None:
        """Into the log, once a minute; outside the lock, for who knows what a log waits for."""
        now = self._clock()
        if now >= self._complained.get(about, NEVER) + COMPLAIN_SECONDS:
            self._complained[about] = now
            log.error(message)

    # -- the feed

    def _page(self, cursor: str | None, tag: str | None) -> _Page:
        """What follows on the cursor. `_Failure` where that cannot be had."""
        sent = self._clock()
        answer = self._changes(cursor, tag)
        if answer.status == 304 and tag:
            return _Page(None, cursor, tag, sent, answer)
        if answer.status == 400 and answer.code == "bad_cursor" and cursor:
            log.error("The feed cannot read its cursor, and is told from its beginning")
            answer = self._changes(None, None)
        if answer.status != 200:
            raise _refusal(answer)
        batch = _batch(_json(answer.body), cursor) or _beginning(answer, cursor)
        return _Page(batch, batch.cursor if batch else cursor, None if batch else answer.tag, sent, answer)

    def _changes(self, cursor: str | None, tag: str | None) -> _Answer:
        query = urlencode({"limit": PAGE, **({"lastEventId": cursor} if cursor else {})})
        until = time.monotonic() + PAGE_SECONDS
        return self._service.get(f"/api/changes?{query}", tag, until, PAGE * DOCUMENT_BYTES)

    def _take_page(self, page: _Page, lease: float) -> None:
        with self._lock:
            if page.batch is None:
                self._in_step_until = page.sent + lease
                return
            if page.batch.epoch != self._epoch:
                self._epoch, self._in_step_until = page.batch.epoch, NEVER
            for change in page.batch.changes:
                self._take_change(change, page)

    def _take_change(self, change: Change, page: _Page) -> None:
        """The feed drives nobody out: where there is no room, a tenant's document waits to be asked for."""
        held = self._tenants.get(change.tenant_id)
        if held is None:
            if len(self._tenants) >= self._most or change.document is None:
                return
            held = self._tenants[change.tenant_id] = _Tenant()
            self._tenants.move_to_end(change.tenant_id, last=False)
        old = held.copy
        if change.document is None:
            held.copy, held.forgotten_at = None, self._clock()
            return
        taken = _copy_of_feed(change.document, change.lasts_until, page, self._epoch)
        if old and old.document.version == change.document.version and old.epoch in (None, self._epoch):
            held.copy = replace(old, epoch=self._epoch)
        elif old is None or self._supersedes(taken, old, page.sent):
            held.copy, held.rests_until = taken, NEVER

    def _repeat(self, turn: Callable[[], bool], stop: threading.Event, every: float) -> None:
        failures = 0
        while not stop.is_set():
            try:
                pause = 0.0 if turn() else every
                failures = 0
            except Exception as failure:  # yours included: a loop that ends unseen would be worse
                failures += 1
                pause = min(BACK_OFF_SECONDS, every * 2 ** min(failures, 10))
                with self._lock:
                    self._counters["errors"] += 1
                is_known = isinstance(failure, _Failure)
                log.error("The feed cannot be followed: %s", failure, exc_info=None if is_known else failure)
            stop.wait(pause)

    def _begin_as_a_child(self) -> None:
        """After a fork: connections, locks and questions under way belong to the parent."""
        self._lock = threading.Lock()
        self._service.close()
        self._in_step_until = NEVER
        for held in self._tenants.values():
            held.flight = None


_clients: weakref.WeakSet[BillingClient] = weakref.WeakSet()


def _after_fork() -> None:
    for client in _clients:
        client._begin_as_a_child()


if hasattr(os, "register_at_fork"):  # where there is none, nobody forks
    os.register_at_fork(after_in_child=_after_fork)


# ---- what is kept


@dataclass(frozen=True)
class _Copy:
    """A document, and until when it serves, by the client's clock. It was true when asked for, or later."""

    document: Document
    tag: str | None
    asked: float
    fresh: float  # as it is
    spare: float  # while somebody looks it up
    last: float  # in need
    epoch: str | None

    @property
    def asks_with(self) -> str | None:
        """None where a 304 would leave a document that calls itself stale."""
        return None if self.document.body.get("stale") else self.tag


class _Flight:
    """A question under way, which all who come meanwhile wait for."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.document: Document | None = None


class _Tenant:
    """What is held of a tenant."""

    __slots__ = ("copy", "flight", "forgotten_at", "is_slow", "missed", "rests_until")

    def __init__(self) -> None:
        self.copy: _Copy | None = None
        self.flight: _Flight | None = None
        self.rests_until = NEVER  # the service has nothing to say about it until then
        self.forgotten_at = NEVER  # when the feed said so
        self.is_slow = False  # its last answer did not come in time
        self.missed = 0, NEVER

    def lacks(self, at_least: int, now: float) -> bool:
        """Whether a newer version is wanted; not one that was missed just now, for anybody can want those."""
        version, until = self.missed
        is_missed = at_least >= version and now < until
        return at_least > (self.copy.document.version if self.copy else 0) and not is_missed


@dataclass(frozen=True)
class _Page:
    batch: Batch | None  # None: the feed's end
    cursor: str | None
    tag: str | None
    sent: float
    answer: _Answer


def _copy(document: Document, tag: str | None, answer: _Answer, sent: float, epoch: str | None) -> _Copy:
    """How long it may serve is what the answer says, and less where an end is known."""
    allowed = answer.directives
    base = sent - (answer.seconds("Age") or 0)
    end = _until(document.valid_until, answer)
    fresh = min(FRESH_SECONDS, _seconds(allowed.get("max-age")) or 0, end)
    spare = fresh + min(SPARE_SECONDS, _seconds(allowed.get("stale-while-revalidate")) or 0)
    last = fresh + min(NEED_SECONDS, _seconds(allowed.get("stale-if-error")) or 0)
    if "no-cache" in allowed or "no-store" in allowed:
        fresh = spare = last = 0
    return _Copy(document, tag, sent, base + fresh, base + min(spare, end), base + min(last, end), epoch)


def _copy_of_feed(document: Document, lasts_until: datetime | None, page: _Page, epoch: str | None) -> _Copy:
    ends = (_until(moment, page.answer) for moment in (document.valid_until, lasts_until))
    last = page.sent + min(NEED_SECONDS, *ends)
    return _Copy(document, None, page.sent, page.sent, page.sent, last, epoch)


def _until(end: datetime | None, answer: _Answer) -> float:
    """Seconds until then, if that is known, by the service's clock, which is read to a second."""
    if end is None:
        return float("inf")
    if answer.date is None:
        return 0.0
    return max(0.0, (end - answer.date).total_seconds() - 1)


# ---- reading what came


class _Failure(Exception):
    """No answer that could be used. `is_general`: others would fare no better; `is_late`: or they might."""

    def __init__(
        self, reason: str, *, is_general: bool = True, is_late: bool = False, pause: float = PAUSE_SECONDS
    ) -> None:
        super().__init__(reason)
        self.is_general = is_general
        self.is_late = is_late
        self.pause = pause


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Message
    body: bytes = field(repr=False)

    @property
    def tag(self) -> str | None:
        """To ask again with, if it is one."""
        found = TAG.fullmatch(self.headers.get("ETag", ""))
        return f"W/{found[1]}" if found else None

    @property
    def date(self) -> datetime | None:
        """The service's clock."""
        try:
            found = parsedate_to_datetime(self.headers.get("Date", ""))
        except (TypeError, ValueError, OverflowError):
            return None
        return found if found.tzinfo else found.replace(tzinfo=timezone.utc)

    @property
    def directives(self) -> Mapping[str, str]:
        """Of Cache-Control."""
        parts = ",".join(self.headers.get_all("Cache-Control") or ()).lower().split(",")
        return {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in parts)}

    @property
    def code(self) -> str:
        """What an error of the service calls itself."""
        try:
            body = _json(self.body)
        except _Failure:
            return ""
        code = body.get("code") if isinstance(body, dict) else None
        return code if isinstance(code, str) and re.fullmatch("[a-z_]{1,60}", code) else ""

    def seconds(self, header: str) -> int | None:
        return _seconds(self.headers.get(header))


def _seconds(value: str | None) -> int | None:
    return int(value) if value and re.fullmatch("[0-9]{1,9}", value) else None


def _document_of(answer: _Answer, tenant: str, copy: _Copy | None) -> Document:
    """The document of the answer, `_Failure` where it has none that is this tenant's."""
    if answer.status == 304:
        if copy is None or copy.asks_with is None or answer.tag not in (None, copy.tag):
            raise _Failure("304 for what we do not have", is_general=False)
        return replace(copy.document, origin="revalidated")
    if answer.status != 200:
        raise _refusal(answer)
    return replace(_document(_json(answer.body), tenant), origin="changed")


def _refusal(answer: _Answer) -> _Failure:
    """A refused token, a limit or a failure are everybody's; the rest is about what was asked."""
    status, code = answer.status, answer.code
    is_general = status < 400 or status in (401, 403, 429) or (status >= 500 and code != "state_unknown")
    pause = min(LONGEST_PAUSE_SECONDS, max(1, answer.seconds("Retry-After") or PAUSE_SECONDS))
    return _Failure(f"{status} {code}".rstrip(), is_general=is_general, pause=pause)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _Failure("an answer that is not JSON") from None


def _document(body: Any, tenant: str) -> Document:
    """Members we do not know are left aside; those we go by must be what they should."""
    if not isinstance(body, dict) or body.get("tenant_id") != tenant:
        raise _Failure("the document is not this tenant's", is_general=False)
    version, features = _count(body.get("version")), body.get("features")
    if version < 1 or not isinstance(features, dict):
        raise _Failure("the document is not one", is_general=False)
    as_of, valid_until = _moment(body.get("as_of")), _moment(body.get("valid_until"))
    given = MappingProxyType({name: _feature(found) for name, found in features.items()})
    return Document(tenant, version, given, MappingProxyType(body), as_of, valid_until)


def _feature(found: Any) -> Feature:
    if not isinstance(found, dict) or not isinstance(found.get("enabled"), bool):
        raise _Failure("a feature of the document is not one", is_general=False)
    limit = found.get("limit")
    limit = None if limit is None else _count(limit)
    return Feature(True, limit) if found["enabled"] else Feature(False, 0)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _Failure("a number of the document is not one", is_general=False)
    return value


def _moment(value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
    except (AttributeError, ValueError, TypeError):
        raise _Failure("a moment of the document is not one", is_general=False) from None
    if moment.tzinfo is None:
        raise _Failure("a moment of the document has no zone", is_general=False)
    return moment


def _batch(events: Any, after: str | None) -> Batch | None:
    """The events of an answer; None where there are none. Nonsense is not skipped: it holds everything up."""
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise _Failure("the feed's answer is no list of events")
    if not events:
        return None
    cursors = [event.get("id") for event in events]
    found = [CURSOR.fullmatch(cursor) if isinstance(cursor, str) else None for cursor in cursors]
    places = [(match[1], int(match[2])) for match in found if match]
    if len(places) < len(events) or len({epoch for epoch, _ in places}) > 1:
        raise _Failure("the feed's events have no ids that could be cursors")
    if places != sorted(set(places)) or cursors[-1] == after:
        raise _Failure("the feed does not go forward")
    ours = (event for event in events if event.get("type") == "billing.tenant.state")
    return Batch(tuple(_change(event) for event in ours), after, cursors[-1], places[-1][0])


def _beginning(answer: _Answer, after: str | None) -> Batch | None:
    """Into another epoch that has nothing yet. No event tells of it, but the tag of its end is a cursor."""
    cursor = (answer.tag or "").removeprefix("W/").strip('"')
    found = CURSOR.fullmatch(cursor)
    if found is None or int(found[2]) > 0 or found[1] == _epoch(after):
        return None
    return Batch((), after, cursor, found[1])


def _change(event: dict[str, Any]) -> Change:
    tenant = event.get("subject")
    if not isinstance(tenant, str) or not tenant:
        raise _Failure("an event of the feed names no tenant")
    if event.get("method") == "DELETE":
        return Change(tenant, None)
    return Change(tenant, _document(event.get("data"), tenant), _moment(event.get("lastsuntil")))


def _epoch(cursor: str | None) -> str | None:
    found = CURSOR.fullmatch(cursor or "")
    return found[1] if found else None


def _declared(name: str, value: bool | int | None) -> Feature:
    if value is None or value is True:
        return Feature(True, None)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"fallback: {name!r} must be True, False, a limit from 0 on, or None for no limit")
    return Feature(value > 0, int(value))


# ---- HTTP


class _Service:
    """GET, and nothing else, within a deadline that holds for every step. Follows nobody elsewhere."""

    def __init__(self, url: str, token: str, context: ssl.SSLContext | None) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("url: must be an address") from None
        is_plain = not (parts.username or parts.password or parts.query or parts.fragment)
        if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
            raise ValueError("url: must be http:// or https:// and a host, without user, query or fragment")
        if not re.fullmatch("[!-~]*", parts.path) or not re.fullmatch("[!-~]+", token):
            raise ValueError("url and token: must be ASCII without blanks")
        is_secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, port or (443 if is_secure else 80)
        self._path = parts.path.rstrip("/")
        self._context = (context or ssl.create_default_context()) if is_secure else None
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._idle: list[_Connection] = []
        self.address = f"{parts.scheme}://{self._host}:{self._port}{self._path}"

    def get(self, path: str, tag: str | None, until: float, most: int) -> _Answer:
        """The answer, whole, by then. `_Failure` without an answer, or with one of more than `most` bytes."""
        headers = {**self._headers, **({"If-None-Match": tag} if tag else {})}
        kept = self._kept()
        try:
            if kept:
                try:
                    return self._exchange(kept, path, headers, until, most)
                except (ConnectionError, ssl.SSLEOFError):  # closed while we were not looking
                    pass
            connection = _Connection(self._host, self._port, self._context)
            return self._exchange(connection, path, headers, until, most)
        except FAILURES as e:
            is_late = isinstance(e, (TimeoutError, socket.timeout))  # two things before Python 3.10
            raise _Failure(type(e).__name__, is_late=is_late) from None

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _kept(self) -> _Connection | None:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if connection.is_quiet():
                return connection
            connection.close()
        return None

    def _exchange(
        self, connection: _Connection, path: str, headers: Mapping[str, str], until: float, most: int
    ) -> _Answer:
        connection.until = until
        may_stay = False
        try:
            connection.request("GET", self._path + path, headers=headers)
            with connection.getresponse() as response:
                body = response.read(most + 1)
                if len(body) > most:
                    raise _Failure("an answer that is too long", is_general=False)
                if response.length:
                    raise _Failure("an answer that ends too early")
                may_stay = response.isclosed() and not response.will_close  # closed: read to its end
                return _Answer(response.status, response.headers, body)
        finally:
            connection.used = time.monotonic()
            if may_stay and len(self._idle) < KEPT_OPEN:
                self._idle.append(connection)
            else:
                connection.close()


class _Connection(http.client.HTTPConnection):
    """Each connect, send and receive gets what is left until the deadline: no server can drip past it."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        super().__init__(host, port)
        self.default_port = 443 if context else 80
        self.until = self.used = time.monotonic()
        self._context = context

    def connect(self) -> None:
        """Addresses share the time, so that a silent one leaves some for the next."""
        addresses = _addresses(self.host, self.port, self.left())
        failure: OSError = OSError("no address")
        for tried, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(self.left() / (len(addresses) - tried))
                sock.connect(address)
                self.sock = _Paced(self._secured(sock), self)
            except OSError as e:
                sock.close()
                failure = e
            else:
                return
        raise failure

    def _secured(self, sock: socket.socket) -> socket.socket:
        if self._context is None:
            return sock
        sock.settimeout(self.left())
        return self._context.wrap_socket(sock, server_hostname=self.host)

    def left(self) -> float:
        """Seconds; `TimeoutError` once there are none."""
        seconds = self.until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the deadline has passed")
        return seconds

    def is_quiet(self) -> bool:
        """Whether the other side has neither closed it nor said what nobody asked for."""
        is_young = time.monotonic() < self.used + IDLE_SECONDS
        return is_young and isinstance(self.sock, _Paced) and self.sock.is_quiet()


class _Paced:
    """A socket as `http.client` uses one, each step with what is left of its connection's time."""

    def __init__(self, sock: socket.socket, connection: _Connection) -> None:
        self._sock = sock
        self._connection = connection

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._connection.left())
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Receiver(self._sock, self._connection))

    def is_quiet(self) -> bool:
        self._sock.setblocking(False)
        try:
            socket.socket.recv(self._sock, 1, socket.MSG_PEEK)  # below TLS, which cannot peek
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        self._sock.close()


class _Receiver(io.RawIOBase):
    def __init__(self, sock: socket.socket, connection: _Connection) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open until the answer is read
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._connection.left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _addresses(host: str, port: int, seconds: float) -> list[Any]:
    """The resolver knows no deadline. So a thread asks it, which may outlive the question."""
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as e:
            found.put(e)

    threading.Thread(target=look_up, daemon=True, name="billing-resolver").start()
    try:
        answer = found.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("the resolver is silent") from None
    if isinstance(answer, Exception):
        raise answer
    return list(answer)
