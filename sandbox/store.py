"""Everything the pretend account holds: objects by kind and id, its settings, its clock, its saved answers.

All of it is plain JSON in memory behind one lock. With a path it is also a file that its owner alone can
read, replaced in one step after every change, so that a crash leaves the last whole state and a restart goes
on from it. Objects are written through `insert` and `change` only: that is how `life` learns what may fall due.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sandbox.errors import no_such

Json = dict[str, Any]

# Nothing short-lived is asked for after Stripe's own 24 hours; older entries make room.
SHORT_LIVED_SECONDS = 24 * 3600

RETRY_DAYS = [3, 5, 7, 7]  # from one failed payment to the next attempt

NO_REQUEST: Json = {"id": None, "idempotency_key": None}

# kept in the file, beside the objects
SETTINGS = ("offset_seconds", "retry_days", "after_retries", "declines_left")


class Store:
    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self.lock = threading.RLock()
        self.path = path
        self.clock = clock
        self.public_url = ""  # where invoices say their page is; set by the server
        self.offset_seconds = 0  # how far Stripe's time runs ahead of the clock
        self.instant: int | None = None  # Stripe's time while something due earlier is made up for
        self.request = NO_REQUEST  # the call that is being answered
        self.retry_days = list(RETRY_DAYS)
        self.after_retries = "canceled"  # or unpaid, or past_due
        self.declines_left: int | None = 0  # of the charges to come, by whatever card; None: all
        self.collections: dict[str, dict[str, Json]] = {}
        if path and path.exists():
            self.collections = json.loads(path.read_text())
            if not isinstance(self.collections, dict):
                raise ValueError("not a JSON object")
            vars(self).update(self.collections.pop("settings", {}))
        self.agenda: list[tuple[int, str, str]] = []  # a heap of what falls due when, kept by `life`
        self.written = {
            (kind, id): thing for kind, things in self.collections.items() for id, thing in things.items()
        }

    def now(self) -> int:
        """Stripe's own time. Everything dated in the sandbox is dated by it."""
        with self.lock:  # nobody else sees an instant that is being made up for
            return int(self.clock()) + self.offset_seconds if self.instant is None else self.instant

    @contextmanager
    def standing_at(self, instant: int) -> Iterator[None]:
        self.instant, before = instant, self.instant
        try:
            yield
        finally:
            self.instant = before

    @contextmanager
    def answering(self, request: Json) -> Iterator[None]:
        """What happens meanwhile was asked for by this call. Hold the lock."""
        self.request = request
        try:
            yield
        finally:
            self.request = NO_REQUEST

    def collection(self, kind: str) -> dict[str, Json]:
        """All of a kind by id, oldest first. Hold the lock."""
        return self.collections.setdefault(kind, {})

    def find(self, kind: str, id: str, *, param: str = "id") -> Json:
        """The object, or Stripe's refusal with the last word of its kind: "No such customer: 'cus_1'"."""
        with self.lock:
            found = self.collection(kind).get(id)
        if not found:
            raise no_such(kind.split(".")[-1], id, param=param)
        return found

    def insert(self, thing: Json) -> Json:
        with self.lock:
            self.collection(thing["object"])[thing["id"]] = thing
            self.written[thing["object"], thing["id"]] = thing
        return thing

    def change(self, thing: Json, **changes: Any) -> Json:
        """Change a stored object in place; answers what it said before where that differs."""
        with self.lock:
            before = {name: thing.get(name) for name, value in changes.items() if thing.get(name) != value}
            thing.update(changes)
            self.written[thing["object"], thing["id"]] = thing
        return before

    def insert_short_lived(self, kind: str, id: str, entry: Json) -> None:
        """Keep an entry with an `at` for a day, forgetting those that have had theirs."""
        with self.lock:
            entries = self.collection(kind)
            while entries and is_stale(entries[oldest := next(iter(entries))], entry["at"]):
                del entries[oldest]
            entries[id] = entry

    def lookup(self, id: str) -> Json | None:
        with self.lock:
            return next((things[id] for things in self.collections.values() if id in things), None)

    def save(self) -> None:
        if self.path is None:
            return
        with self.lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.path.with_name(f"{self.path.name}.new")
            settings = {name: getattr(self, name) for name in SETTINGS}
            draft.unlink(missing_ok=True)
            draft.touch(mode=0o600)  # it holds what signs webhooks, and ways into the Portal
            draft.write_text(json.dumps({**self.collections, "settings": settings}))
            draft.replace(self.path)


def is_stale(entry: Json, now: float) -> bool:
    return bool(entry["at"] < now - SHORT_LIVED_SECONDS)
