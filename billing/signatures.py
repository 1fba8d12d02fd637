"""Stripe's signature on a webhook: HMAC-SHA256 over the time and the body's very bytes.

Our own few lines, on bytes throughout: a header or a body in a strange encoding is a signature that does not
hold, and nothing else. Every secret is tried against every signature, so that secrets can be rolled without
losing an event.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

TOLERANCE_SECONDS = 300  # Stripe's own: older, or further in the future, is no delivery of today's
MOST_SIGNATURES = 16  # Stripe sends one for each valid secret; comparing costs time

Fault = Literal["unsigned", "out_of_time", "no_match"]


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that holds: when Stripe made it, by its own clock, and with which of our secrets."""

    at: int
    secret: str  # its fingerprint
    place: int  # among our secrets; the first is 1


def verify(header: str, body: bytes, secrets: Sequence[str], now: float) -> Signed | None:
    """What the header proves of the body, or None. Takes as long for a near miss as for a wild one."""
    at, signatures = _parse(header)
    if at is None or abs(now - at) > TOLERANCE_SECONDS:
        return None
    for place, secret in enumerate(secrets, 1):
        expected = _digest(body, secret, at).encode()
        # all of them, always: `any` would stop at the first that fits
        if sum(hmac.compare_digest(expected, signature) for signature in signatures):
            return Signed(at, fingerprint(secret), place)
    return None


def fault(header: str, now: float) -> Fault:
    """What was wrong with a header that proved nothing; for operators, and never for whoever sent it."""
    at, signatures = _parse(header)
    if at is None or not signatures:
        return "unsigned"
    return "out_of_time" if abs(now - at) > TOLERANCE_SECONDS else "no_match"


def sign(body: bytes, secret: str, at: int) -> str:
    """The header Stripe would send with this body at that time."""
    return f"t={at},v1={_digest(body, secret, at)}"


def _digest(body: bytes, secret: str, at: int) -> str:
    return hmac.new(secret.encode(), str(at).encode() + b"." + body, hashlib.sha256).hexdigest()


def fingerprint(secret: str) -> str:
    """A name for a secret that does not give it away."""
    return hashlib.sha256(b"signing secret " + secret.encode()).hexdigest()[:8]


def _parse(header: str) -> tuple[int | None, list[bytes]]:
    """The one time and the signatures of scheme v1."""
    parts = [part.strip().partition("=") for part in header.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    signatures = [value.encode("latin-1", "replace") for name, _, value in parts if name == "v1"]
    return _time(times), signatures[:MOST_SIGNATURES]


def _time(times: Iterable[str]) -> int | None:
    match list(times):
        case [time] if len(time) <= 12 and time.isascii() and time.isdigit():
            return int(time)
    return None
