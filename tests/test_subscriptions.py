"""The verdict on a snapshot, line by line and to the second; folding; and what is read of a subscription."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from billing.subscriptions import FINAL, Held, Incomplete, Snapshot, Verdict, fold, read, verdict
from tests.deliveries import a_subscription

AT = 1_800_000_000
AS_OF_END = {"event": AT, "answer": AT + 3}


def a_snapshot(
    at: int = AT, *, event: int = 1, fresh: bool = True, ours: bool = True, **facts: Any
) -> Snapshot:
    return Snapshot(read(a_subscription("cus_1", **facts)), event, at, fresh, ours)


def held(source: str = "event", **facts: Any) -> Held:
    """Held since AT: at that second from an event, over three seconds from an answer."""
    told = read(a_subscription("cus_1", **facts)).facts
    return Held(told.status, told.digest(), AT, AS_OF_END[source], source)


# ---- the verdict

TIMES = [
    ("event", AT + 2, Verdict.NEWER),
    ("event", AT + 1, Verdict.ASK),
    ("event", AT, Verdict.ASK),
    ("event", AT - 1, Verdict.ASK),
    ("event", AT - 2, Verdict.OLDER),
    ("answer", AT + 3 + 6, Verdict.NEWER),
    ("answer", AT + 3 + 5, Verdict.ASK),
    ("answer", AT + 1, Verdict.ASK),
    ("answer", AT - 5, Verdict.ASK),
    ("answer", AT - 6, Verdict.OLDER),
]


@pytest.mark.parametrize(("source", "created", "expected"), TIMES)
def test_what_differs_is_certain_outside_of_the_margin_only(
    source: str, created: int, expected: Verdict
) -> None:
    assert verdict(held(source), a_snapshot(created, status="past_due")) is expected


@pytest.mark.parametrize(("source", "created", "expected"), TIMES)
def test_what_agrees_still_moves_the_time_or_is_older_and_never_asks(
    source: str, created: int, expected: Verdict
) -> None:
    """Were it said to agree before the times are compared, a late older event would look newer afterwards."""
    agrees = Verdict.AGREES if expected is Verdict.ASK else expected

    assert verdict(held(source), a_snapshot(created)) is agrees


@pytest.mark.parametrize(("source", "created", "expected"), TIMES)
@pytest.mark.parametrize("unsure", ["version", "items"])
def test_a_snapshot_in_another_version_or_without_all_items_asks_unless_it_is_older(
    source: str, created: int, expected: Verdict, unsure: str
) -> None:
    snapshot = a_snapshot(created, ours=unsure != "version")
    if unsure == "items":
        snapshot = replace(snapshot, subscription=replace(snapshot.subscription, whole=False))

    asks = Verdict.OLDER if expected is Verdict.OLDER else Verdict.ASK
    assert verdict(held(source), snapshot) is asks


@pytest.mark.parametrize(
    ("fresh", "ours", "expected"),
    [
        (True, True, Verdict.NEWER),
        (False, True, Verdict.ASK),
        (True, False, Verdict.ASK),
        (False, False, Verdict.ASK),
    ],
)
def test_the_first_snapshot_is_taken_if_it_is_fresh_and_readable(
    fresh: bool, ours: bool, expected: Verdict
) -> None:
    assert verdict(None, a_snapshot(fresh=fresh, ours=ours)) is expected


@pytest.mark.parametrize("final", sorted(FINAL))
@pytest.mark.parametrize("late", [-1000, -1, 0, 1, 1000])
@pytest.mark.parametrize("source", ["event", "answer"])
def test_what_is_over_stays_over_whenever_the_snapshot_was_made(source: str, late: int, final: str) -> None:
    assert verdict(held(source, status=final), a_snapshot(AT + late)) is Verdict.OLDER


@pytest.mark.parametrize("final", sorted(FINAL))
@pytest.mark.parametrize("late", [-1000, -1, 0, 1, 1000])
@pytest.mark.parametrize("source", ["event", "answer"])
def test_an_end_wins_over_whatever_is_not_over(source: str, late: int, final: str) -> None:
    assert verdict(held(source), a_snapshot(AT + late, status=final)) is Verdict.FINAL


def test_an_end_needs_no_row_and_need_not_be_fresh() -> None:
    assert verdict(None, a_snapshot(status="canceled", fresh=False)) is Verdict.FINAL


def test_an_end_in_another_version_asks() -> None:
    assert verdict(held(), a_snapshot(AT + 1000, status="canceled", ours=False)) is Verdict.ASK


@pytest.mark.parametrize(("source", "created", "expected"), TIMES)
def test_between_two_ends_the_time_decides(source: str, created: int, expected: Verdict) -> None:
    ended = held(source, status="canceled", ended_at=AT - 10)

    assert verdict(ended, a_snapshot(created, status="canceled", ended_at=AT)) is expected


# ---- folding


def test_each_snapshot_is_judged_by_what_its_predecessor_left() -> None:
    """Judged by what was held before the batch, the one in the middle would be written last."""
    first = a_snapshot(AT + 10, event=3)
    middle = a_snapshot(AT + 20, event=1, status="past_due")
    last = a_snapshot(AT + 30, event=2, status="unpaid")

    folded = fold(held(), [middle, last, first])

    assert folded.verdicts == dict.fromkeys((1, 2, 3), Verdict.NEWER)
    assert folded.merged == last.subscription
    assert folded.held == Held("unpaid", last.subscription.facts.digest(), AT + 30, AT + 30, "event")


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_the_order_of_arrival_does_not_change_what_a_batch_comes_to(order: tuple[int, ...]) -> None:
    statuses = ["trialing", "active", "past_due", "active"]
    snapshots = [a_snapshot(AT + 10 * n, event=n, status=status) for n, status in enumerate(statuses)]

    folded = fold(None, [snapshots[n] for n in order])

    assert folded.held
    assert (folded.held.as_of, folded.held.status) == (AT + 30, "active")


def test_one_that_asks_leaves_what_is_held_as_it_is() -> None:
    unsure, later = a_snapshot(AT + 1, event=1, status="past_due"), a_snapshot(AT + 2, event=2)

    folded = fold(held(), [unsure, later])

    assert folded.verdicts == {1: Verdict.ASK, 2: Verdict.NEWER}
    assert folded.held == replace(held(), as_of=AT + 2, as_of_end=AT + 2)


def test_one_that_only_asks_changes_nothing() -> None:
    folded = fold(held(), [a_snapshot(AT + 1, status="past_due")])

    assert (folded.held, folded.merged, folded.heard) == (held(), None, False)


@pytest.mark.parametrize(("created", "as_of"), [(AT + 1, AT + 1), (AT - 1, AT)])
def test_one_that_agrees_with_an_event_moves_the_time_forward_only(created: int, as_of: int) -> None:
    folded = fold(held(), [a_snapshot(created)])

    assert folded.held == replace(held(), as_of=as_of, as_of_end=as_of)
    assert folded.merged is None
    assert folded.heard


def test_one_that_agrees_within_an_answers_time_leaves_that_as_it_is() -> None:
    folded = fold(held("answer"), [a_snapshot(AT + 5)])

    assert folded.held == held("answer")
    assert folded.heard


def test_an_event_that_agrees_with_an_answer_keeps_a_late_older_one_from_winning() -> None:
    """Active at 20 is held from an answer; active again at 40; then, late, the past_due of 30."""
    back = fold(held("answer"), [a_snapshot(AT + 40)])

    late = fold(back.held, [a_snapshot(AT + 30, status="past_due")])

    assert late.verdicts == {1: Verdict.OLDER}
    assert late.held == back.held


def test_an_answer_is_no_instant() -> None:
    """A change between question and answer, delivered late, must neither win over the answer nor be lost."""
    over_a_minute = replace(held("answer"), as_of_end=AT + 60)

    assert verdict(over_a_minute, a_snapshot(AT + 30, status="past_due")) is Verdict.ASK


def test_two_changes_in_one_second_ask() -> None:
    folded = fold(None, [a_snapshot(event=1), a_snapshot(event=2, status="past_due")])

    assert folded.verdicts == {1: Verdict.NEWER, 2: Verdict.ASK}


def test_nothing_is_heard_of_one_that_is_older() -> None:
    assert not fold(held(), [a_snapshot(AT - 10, status="past_due")]).heard


# ---- reading


def test_all_that_is_kept_makes_a_difference() -> None:
    """What the digest misses would be said to agree, and never be written."""
    changes: list[dict[str, Any]] = [
        {"status": "unpaid"},
        {"cancel_at_period_end": True},
        *({name: AT} for name in ("cancel_at", "canceled_at", "ended_at", "trial_end")),
        {"start_date": AT},
        {"latest_invoice": "in_2"},
        {"pause_collection": {"behavior": "void", "resumes_at": None}},
        {"pause_collection": {"behavior": "void", "resumes_at": AT}},
        {"items": [("si_1", "price_1", 2)]},
        {"items": [("si_1", "price_2", 1)]},
        {"items": [("si_2", "price_1", 1)]},
        {"items": [("si_1", "price_1", 1), ("si_2", "price_2", 1)]},
    ]

    digests = {read(a_subscription("cus_1", **change)).facts.digest() for change in [{}, *changes]}

    assert len(digests) == len(changes) + 1


def test_an_expanded_invoice_customer_or_product_says_no_more_than_its_id() -> None:
    plain, expanded = a_subscription("cus_1"), a_subscription("cus_1")
    expanded["latest_invoice"] = {"id": "in_1", "object": "invoice"}
    expanded["customer"] = {"id": "cus_1", "object": "customer"}
    expanded["items"]["data"][0]["price"]["product"] = {"id": "prod_of_price_1", "object": "product"}

    assert read(expanded) == read(plain)


def test_the_order_of_the_items_makes_no_difference() -> None:
    one, two = ("si_1", "price_1", 1), ("si_2", "price_2", 3)

    assert read(a_subscription("cus_1", items=[one, two])) == read(a_subscription("cus_1", items=[two, one]))


def test_both_shapes_of_the_period_are_read() -> None:
    """Before 2025-03-31 all items had the period of their subscription."""
    now, before = a_subscription("cus_1"), a_subscription("cus_1")
    for name in ("current_period_start", "current_period_end"):
        before[name] = before["items"]["data"][0].pop(name)

    assert read(before) == read(now)
    assert read(now).facts.items[0].period_end


def test_each_item_has_its_own_period() -> None:
    thing = a_subscription("cus_1", items=[("si_1", "price_1", 1), ("si_2", "price_2", 1)])
    thing["items"]["data"][1]["current_period_end"] = AT

    month, other = read(thing).facts.items

    assert month.period_end != other.period_end == AT


def test_items_that_were_left_out_are_missed_unless_they_were_read_separately() -> None:
    thing = a_subscription("cus_1")
    thing["items"]["has_more"] = True

    assert not read(thing).whole
    assert read(thing, thing["items"]["data"]).whole


UNUSABLE: list[dict[str, Any]] = [
    {"id": None},
    {"customer": 7},
    {"status": None},
    {"cancel_at_period_end": None},
    {"items": None},
    {"cancel_at": "soon"},
    {"trial_end": 1.5},
    {"ended_at": True},
    {"start_date": 10**12},
]


@pytest.mark.parametrize("change", UNUSABLE, ids=lambda change: next(iter(change)))
def test_what_makes_no_sense_is_not_guessed(change: dict[str, Any]) -> None:
    thing = a_subscription("cus_1") | change

    with pytest.raises(Incomplete):
        read(thing)


@pytest.mark.parametrize(
    "change", [{"id": None}, {"price": None}, {"price": {"id": "price_1"}}, {"quantity": -1}]
)
def test_an_item_that_makes_no_sense_makes_its_subscription_incomplete(change: dict[str, Any]) -> None:
    thing = a_subscription("cus_1")
    thing["items"]["data"][0].update(change)

    with pytest.raises(Incomplete):
        read(thing)
