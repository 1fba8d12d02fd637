"""Which signatures hold. FORGED is used at the door, too: there they all get one answer."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import stripe
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.signatures import MOST_SIGNATURES, fingerprint, verify
from tests.conftest import SIGNING_SECRET
from tests.deliveries import signature

NOW = 1_800_000_000
BODY = '{"id": "evt_1", "type": "customer.updated", "name": "Café"}'.encode()
WRONG = f"v1={'0' * 64}"
OLD, NEW = "whsec_the_one_before_the_roll", "whsec_the_one_after_the_roll"

Forgery = Callable[[bytes], tuple[str, bytes]]  # from a good body: the header, and the body that is sent


def holds(header: str, body: bytes = BODY, *secrets: str, now: float = NOW) -> bool:
    return verify(header, body, secrets or [SIGNING_SECRET], now) is not None


def good(body: bytes = BODY, *, secret: str = SIGNING_SECRET, at: int = NOW) -> str:
    return signature(body, secret=secret, at=at)


def v1(body: bytes = BODY, *, secret: str = SIGNING_SECRET, at: int = NOW) -> str:
    """The signature alone: v1=…"""
    return good(body, secret=secret, at=at).partition(",")[2]


def header(make: Callable[[str, str], str]) -> Forgery:
    """A forgery of the header, made of the good one's two parts: t=… and v1=…"""

    def forge(body: bytes) -> tuple[str, bytes]:
        at, _, signed = signature(body).partition(",")
        return make(at, signed), body

    return forge


def made_at(seconds_from_now: int) -> Forgery:
    return lambda body: (signature(body, at=int(time.time()) + seconds_from_now), body)


def body(change: Callable[[bytes], bytes]) -> Forgery:
    """A good signature over something else than what is sent."""
    return lambda signed: (signature(signed), change(signed))


FORGED: dict[str, Forgery] = {
    "empty": header(lambda at, v1: ""),
    "nonsense": header(lambda at, v1: "nonsense"),
    "separators only": header(lambda at, v1: ",=,==,"),
    "no time": header(lambda at, v1: v1),
    "two times": header(lambda at, v1: f"{at},{at},{v1}"),
    "an empty time": header(lambda at, v1: f"t=,{v1}"),
    "a time in words": header(lambda at, v1: f"t=now,{v1}"),
    "a negative time": header(lambda at, v1: f"t=-{at[2:]},{v1}"),
    "a time with a fraction": header(lambda at, v1: f"{at}.0,{v1}"),
    "a time of 5,000 digits": header(lambda at, v1: f"t={'9' * 5000},{v1}"),
    "a time that is not ASCII": header(lambda at, v1: f"t=²{at[3:]},{v1}"),
    "another time than was signed": header(lambda at, v1: f"t={int(at[2:]) - 1},{v1}"),
    "stale": made_at(-302),
    "from the future": made_at(310),
    "no signature": header(lambda at, v1: at),
    "an empty signature": header(lambda at, v1: f"{at},v1="),
    "another scheme": header(lambda at, v1: f"{at},v0={v1[3:]}"),
    "wrong": header(lambda at, v1: f"{at},{WRONG}"),
    "wrong in its last digit": header(lambda at, v1: f"{at},{v1[:-1]}{'0' if v1[-1] != '0' else '1'}"),
    "cut off": header(lambda at, v1: f"{at},{v1[:-1]}"),
    "with garbage behind it": header(lambda at, v1: f"{at},{v1}00"),
    "upper case": header(lambda at, v1: f"{at},v1={v1[3:].upper()}"),
    "not ASCII": header(lambda at, v1: f"{at},v1=é{v1[4:]}"),
    "somebody else's secret": lambda body: (signature(body, secret="whsec_of_somebody_else"), body),
    "an empty secret": lambda body: (signature(body, secret=""), body),
    "another body": body(lambda signed: signed.replace(b"evt_", b"evt_0")),
    "a body with one more line end": body(lambda signed: signed + b"\n"),
    "a body in another encoding": body(lambda signed: signed.decode().encode("utf-16")),
    "a body that is cut off": body(lambda signed: signed[:-1]),
    "no body": body(lambda signed: b""),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_signature_does_not_hold(forge: Forgery) -> None:
    header, sent = forge(BODY)

    assert verify(header, sent, [OLD, SIGNING_SECRET], time.time()) is None


@settings(deadline=None, database=None)
@given(st.text() | st.text("tv01=, é²"), st.binary())
def test_no_header_and_no_body_make_it_raise(header: str, body: bytes) -> None:
    assert not holds(header, body)


@settings(deadline=None, database=None)
@given(st.integers(0, len(BODY) - 1), st.integers(1, 255))
def test_every_byte_of_the_body_counts(place: int, change: int) -> None:
    changed = bytes(byte ^ change if at == place else byte for at, byte in enumerate(BODY))

    assert not holds(good(), changed)


def test_a_good_signature_says_when_it_was_made_and_with_which_secret() -> None:
    signed = verify(good(at=NOW - 7), BODY, [OLD, SIGNING_SECRET], NOW)

    assert signed is not None
    assert (signed.at, signed.secret) == (NOW - 7, fingerprint(SIGNING_SECRET))


def test_stripes_own_library_accepts_what_these_tests_sign() -> None:
    """Or they would prove that we agree with ourselves."""
    assert stripe.WebhookSignature.verify_header(BODY.decode(), good(), SIGNING_SECRET)


@pytest.mark.parametrize("place", range(4))
def test_one_good_signature_among_several_is_enough_wherever_it_stands(place: int) -> None:
    signatures = [WRONG] * 3
    signatures.insert(place, v1())

    assert holds(",".join([f"t={NOW}", *signatures]))


@pytest.mark.parametrize("place", range(3))
def test_every_secret_is_tried(place: int) -> None:
    secrets = [OLD, NEW]
    secrets.insert(place, SIGNING_SECRET)

    assert holds(good(), BODY, *secrets)


def test_the_parts_may_stand_in_any_order_with_blanks_and_unknown_schemes_between_them() -> None:
    assert holds(f"v0=00, {v1()},  v2=é ,later, t={NOW}")


def test_more_signatures_than_stripe_ever_sends_are_not_looked_at() -> None:
    allowed = [WRONG] * (MOST_SIGNATURES - 1)

    assert holds(",".join([f"t={NOW}", *allowed, v1()]))
    assert not holds(",".join([f"t={NOW}", *allowed, WRONG, v1()]))


@pytest.mark.parametrize(("age", "is_good"), [(300, True), (300.5, False), (-300, True), (-300.5, False)])
def test_it_holds_for_five_minutes_either_way(age: float, is_good: bool) -> None:
    assert holds(good(), now=NOW + age) is is_good


@pytest.mark.parametrize(
    "time_in_other_digits", ["١٨٠٠٠٠٠٠٠٠", "1\N{FULLWIDTH DIGIT EIGHT}00000000", "18_00000000"]
)
def test_a_time_is_written_in_ascii_digits(time_in_other_digits: str) -> None:
    assert int(time_in_other_digits) == NOW

    assert not holds(f"t={time_in_other_digits},{v1()}")


def test_a_secrets_name_does_not_give_it_away() -> None:
    assert fingerprint(OLD) != fingerprint(NEW)
    assert len(fingerprint(OLD)) == 8
    assert OLD.removeprefix("whsec_")[:4] not in fingerprint(OLD)


# ---- while the secret is rolled, Stripe signs with both

ROLLING = {"before": [OLD], "meanwhile": [OLD, NEW], "after": [NEW]}


@pytest.mark.parametrize("ours", ROLLING.values(), ids=ROLLING)
@pytest.mark.parametrize("stripes", ROLLING.values(), ids=ROLLING)
def test_one_secret_in_common_is_enough(stripes: list[str], ours: list[str]) -> None:
    signed = ",".join([f"t={NOW}", *(v1(secret=secret) for secret in stripes)])

    assert holds(signed, BODY, *ours) is bool(set(stripes) & set(ours))
