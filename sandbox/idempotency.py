"""Idempotency-Key as Stripe keeps it: the first result of a key is its result for 24 hours.

What is saved is the result of an operation that began, good or bad. Refused parameters are not, and a
key whose first request is still under way is refused rather than run twice.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sandbox.errors import Refusal
from sandbox.store import Store, is_stale
from sandbox.wire import Params

KIND = "idempotency_key"


@dataclass
class Claim:
    """A key held while its request runs: what an earlier request left, or what this one will."""

    saved: dict[str, Any] | None = None
    result: dict[str, Any] = field(default_factory=dict)


class Keys:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.running: set[str] = set()

    @contextmanager
    def claim(self, key: str, path: str, params: Params) -> Iterator[Claim]:
        if not key or len(key) > 255:
            raise Refusal("Idempotency keys are 1 to 255 characters long.", type="idempotency_error")
        request = {"path": path, "params": json.dumps(params, sort_keys=True)}
        claim = Claim(self.begin(key, request))
        try:
            yield claim
            if claim.result:
                self.store.insert_short_lived(KIND, key, {**request, **claim.result, "at": self.store.now()})
        finally:
            self.running.discard(key)

    def begin(self, key: str, request: dict[str, str]) -> dict[str, Any] | None:
        with self.store.lock:
            if key in self.running:
                raise in_use(key)
            saved = self.store.collection(KIND).get(key)
            if not saved or is_stale(saved, self.store.now()):
                self.running.add(key)
                return None
        if saved["path"] != request["path"]:
            raise mismatch(key, f"for the same endpoint they were first used for ('{saved['path']}')")
        if saved["params"] != request["params"]:
            raise mismatch(key, "with the same parameters they were first used with")
        return saved


def mismatch(key: str, rule: str) -> Refusal:
    return Refusal(
        f"Keys for idempotent requests can only be used {rule}. Try using a key other than '{key}' if you"
        " meant to execute a different request.",
        type="idempotency_error",
    )


def in_use(key: str) -> Refusal:
    return Refusal(
        "There is currently another in-progress request using this Idempotency Key (that probably means you"
        f" submitted twice, and the other request is still going through): {key}. Please try again later.",
        status=409,
        code="idempotency_key_in_use",
    )
