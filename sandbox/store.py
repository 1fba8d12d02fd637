"""Everything the pretend account holds: objects by kind and id, and the answers saved for idempotency keys.

All of it is plain JSON in memory behind one lock. With a path it is also a file, replaced in one step
after every change, so that a crash leaves the last whole state and a restart goes on from it.
"""

import json
import threading
from pathlib import Path
from typing import Any

from sandbox.errors import no_such

Json = dict[str, Any]

# Nothing short-lived is asked for after Stripe's own 24 hours; older entries make room.
SHORT_LIVED_SECONDS = 24 * 3600


class Store:
    def __init__(self, path: Path | None = None) -> None:
        self.lock = threading.RLock()
        self.path = path
        self.collections: dict[str, dict[str, Json]] = {}
        if path and path.exists():
            self.collections = json.loads(path.read_text())
            if not isinstance(self.collections, dict):
                raise ValueError("not a JSON object")

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
        return thing

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
            draft.write_text(json.dumps(self.collections))
            draft.replace(self.path)


def is_stale(entry: Json, now: float) -> bool:
    return bool(entry["at"] < now - SHORT_LIVED_SECONDS)
