"""What is read of an event's bytes, and what is left out rather than guessed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing import events
from billing.events import Event, Unreadable
from billing.stripe_api import API_VERSION
from tests.deliveries import Json, a_subscription, an_event, an_invoice

WHOLE = b'{"id": "evt_1", "type": "customer.updated", "more": %b}'

UNREADABLE = {
    "nothing": b"",
    "words": b"not JSON",
    "half an event": b'{"id": "evt_1", "type": "customer.upd',
    "an event and more": WHOLE % b"1" + b"}",
    "no UTF-8": WHOLE % b'"\xff"',
    "UTF-16": (WHOLE % b"1").decode().encode("utf-16"),
    "half a character": WHOLE % b'"\xed\xa0\x80"',
    "a list": b"[" + WHOLE % b"1" + b"]",
    "a string": b'"evt_1"',
    "a number": b"1",
    "null": b"null",
    "no id": b'{"type": "customer.updated"}',
    "no type": b'{"id": "evt_1"}',
    "an empty id": b'{"id": "", "type": "customer.updated"}',
    "an id that is a number": b'{"id": 1, "type": "customer.updated"}',
    "a type that is a list": b'{"id": "evt_1", "type": ["customer.updated"]}',
    "an id with a NUL": b'{"id": "evt_\\u0000", "type": "customer.updated"}',
    "an id with half a character": b'{"id": "evt_\\ud800", "type": "customer.updated"}',
    "an id of 256 characters": b'{"id": "%b", "type": "customer.updated"}' % (b"e" * 256),
    "100,000 brackets": b"[" * 100_000,
    "100,000 brackets inside": WHOLE % (b"[" * 100_000 + b"]" * 100_000),
    "100,000 objects inside": WHOLE % (b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a number of 5,000 digits": WHOLE % (b"9" * 5000),
}


def read(event: Json) -> Event:
    return events.read(json.dumps(event).encode())


@pytest.mark.parametrize("raw", UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_event_is_unreadable_for_a_reason_that_repeats_nothing_of_it(raw: bytes) -> None:
    with pytest.raises(Unreadable) as refusal:
        events.read(raw)

    assert str(refusal.value) in {"is not JSON", "is not a JSON object", "has no id and type"}


@settings(deadline=None, database=None)
@given(st.binary())
def test_any_bytes_are_an_event_or_unreadable(raw: bytes) -> None:
    try:
        events.read(raw)
    except Unreadable:
        return
    assert isinstance(json.loads(raw), dict)


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "object", "customer"]), inner),
    max_leaves=8,
)
MEMBERS = ["object", "data", "created", "api_version", "livemode", "account"]


@settings(deadline=None, database=None)
@given(st.dictionaries(st.sampled_from(MEMBERS), ANYTHING), ANYTHING)
def test_members_of_any_kind_are_read_or_left_out(members: Json, thing: Any) -> None:
    event = read({"data": {"object": thing}} | members | {"id": "evt_1", "type": "customer.updated"})

    assert isinstance(event.object, dict)
    for text in (event.object_id, event.customer, event.api_version, event.account):
        assert text is None or text.isascii()
    assert event.created is None or 0 <= event.created < events.LATEST
    assert event.livemode in (True, False, None)
    events.why_unused(event, livemode=False)


def test_an_event_is_read_with_the_object_it_carries() -> None:
    subscription = a_subscription("cus_1")

    event = read(an_event("customer.subscription.updated", subscription, id="evt_1", created=1_700_000_000))

    assert event == Event(
        id="evt_1",
        type="customer.subscription.updated",
        object=subscription,
        object_id="sub_1",
        customer="cus_1",
        created=1_700_000_000,
        api_version=API_VERSION,
        livemode=False,
        account=None,
        thin=False,
    )


@pytest.mark.parametrize(
    ("thing", "customer"),
    [
        ({"object": "subscription", "id": "sub_1", "customer": "cus_1"}, "cus_1"),
        ({"object": "subscription", "id": "sub_1", "customer": {"id": "cus_1", "object": "customer"}}, "cus_1"),
        ({"object": "customer", "id": "cus_1"}, "cus_1"),
        ({"object": "customer", "id": "cus_1", "deleted": True}, "cus_1"),
        ({"object": "checkout.session", "id": "cs_1", "customer": None}, None),
        ({"object": "subscription", "id": "sub_1", "customer": ["cus_1"]}, None),
        ({"object": "subscription", "id": "sub_1", "customer": "cus_\0"}, None),
        ({"object": "price", "id": "price_1"}, None),
    ],
)
def test_the_customer_an_event_is_about(thing: Json, customer: str | None) -> None:
    assert read(an_event("x.y", thing)).customer == customer


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("sub_1", "sub_1"),
        ("x" * 255, "x" * 255),
        ("x" * 256, None),
        ("", None),
        ("a\0b", None),
        ("a\nb", None),
        ("\ud800", None),
        ("café", None),
        (b"sub_1", None),
        (1, None),
        (None, None),
    ],
)
def test_a_name_is_short_visible_ascii(value: object, kept: str | None) -> None:
    assert events.name(value) == kept


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (0, 0),
        (1_700_000_000, 1_700_000_000),
        (events.LATEST, None),
        (-1, None),
        (10**30, None),
        (1_700_000_000.0, None),
        (True, None),
        ("1700000000", None),
        (None, None),
    ],
)
def test_a_moment_is_a_whole_number_of_seconds_in_our_age(value: object, kept: int | None) -> None:
    assert events.moment(value) == kept


@pytest.mark.parametrize(
    "invoice",
    [
        an_invoice("cus_1", "sub_1"),
        an_invoice("cus_1", parent={"subscription_details": {"subscription": {"id": "sub_1"}}}),
        {**an_invoice("cus_1", parent=None), "subscription": "sub_1"},
        {**an_invoice("cus_1", parent={"type": "quote_details"}), "subscription": {"id": "sub_1"}},
    ],
    ids=["current", "current, in full", "before 2025-03-31", "before 2025-03-31, in full"],
)
def test_an_invoices_subscription_is_found_in_either_shape(invoice: Json) -> None:
    assert events.invoiced_subscription(invoice) == "sub_1"


def test_an_invoice_need_not_be_for_a_subscription() -> None:
    assert events.invoiced_subscription(an_invoice("cus_1", parent=None)) is None


# ---- which are worked on


@pytest.mark.parametrize("kind", sorted(events.USED))
def test_every_event_that_says_something_of_a_tenants_state_is_used(kind: str) -> None:
    assert events.why_unused(read(an_event(kind, {"id": "x_1"})), livemode=False) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "charge.succeeded"}, "unknown_type"),
        ({"type": "customer.subscription"}, "unknown_type"),
        ({"type": "customer.updated"}, "nothing_to_keep"),
        ({"livemode": True}, "wrong_livemode"),
        ({"livemode": None}, "wrong_livemode"),
        ({"livemode": "false"}, "wrong_livemode"),
        ({"account": "acct_1"}, "other_account"),
        ({"object": "v2.core.event"}, "thin_event"),
        ({"data": {}}, "thin_event"),
        ({"data": None}, "thin_event"),
    ],
)
def test_the_others_are_put_aside_for_a_reason(change: Json, reason: str) -> None:
    event = read(an_event("customer.subscription.updated", a_subscription("cus_1"), **change))

    assert events.why_unused(event, livemode=False) == reason


def test_a_live_key_means_live_events() -> None:
    live = read(an_event("customer.subscription.updated", a_subscription("cus_1"), livemode=True))
    test = read(an_event("customer.subscription.updated", a_subscription("cus_1"), livemode=False))

    assert events.why_unused(live, livemode=True) is None
    assert events.why_unused(test, livemode=True) == "wrong_livemode"


def test_no_event_is_both_used_and_silent() -> None:
    assert not events.USED & events.SILENT
