"""What is known of invoices: the same whatever order it comes in, and when grace begins."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from billing import invoices
from billing.db import SYSTEM, Database
from billing.invoices import Invoice, merge, read
from tests.conftest import rows
from tests.deliveries import an_invoice

AT = 1_800_000_000


def an_overdue(**changes: Any) -> Invoice:
    told = {"status": "open", "attempted": True, "finalized_at": AT, "as_of": AT, **changes}
    return Invoice("in_1", "sub_1", **told)


def learned(database: Database, *told: Invoice) -> None:
    with database.begin(SYSTEM) as connection:
        invoices.learn(connection, told)


LIFE = [
    an_overdue(status="draft", attempted=False, finalized_at=None, as_of=AT),
    an_overdue(attempted=False, as_of=AT + 1),
    an_overdue(as_of=AT + 2),
    an_overdue(as_of=AT + 3 * 86400),
    an_overdue(status="paid", as_of=AT + 5 * 86400),
]


@pytest.mark.parametrize("order", list(permutations(range(len(LIFE)))), ids=str)
def test_an_invoice_ends_the_same_in_whatever_order_it_is_told(order: tuple[int, ...]) -> None:
    known = LIFE[order[0]]
    for n in order[1:]:
        known = merge(known, LIFE[n])

    assert known == LIFE[-1]


@pytest.mark.parametrize("one", LIFE, ids=lambda invoice: invoice.status)
def test_hearing_it_twice_changes_nothing(one: Invoice) -> None:
    assert merge(one, one) == one


@pytest.mark.parametrize(
    ("behind", "ahead"),
    [
        ("draft", "open"),
        ("open", "uncollectible"),
        ("open", "paid"),
        ("uncollectible", "paid"),
        ("open", "void"),
    ],
)
def test_an_invoice_never_goes_back(behind: str, ahead: str) -> None:
    earlier, later = an_overdue(status=behind, as_of=AT + 10), an_overdue(status=ahead)

    assert merge(earlier, later) == merge(later, earlier)
    assert merge(earlier, later).status == ahead


def test_a_retry_does_not_move_the_moment_it_was_finalized() -> None:
    assert merge(an_overdue(), an_overdue(finalized_at=AT + 100, as_of=AT + 200)).finalized_at == AT


@pytest.mark.parametrize(
    ("status", "attempted", "overdue"),
    [("open", True, True), ("open", False, False), ("paid", True, False), ("uncollectible", True, False)],
)
def test_overdue_is_what_was_tried_in_vain_and_is_still_open(
    status: str, attempted: bool, overdue: bool
) -> None:
    assert an_overdue(status=status, attempted=attempted).is_overdue is overdue


def test_both_shapes_of_the_subscriptions_place_are_read() -> None:
    """Before 2025-03-31 it stood at the top."""
    now, before = an_invoice("cus_1"), an_invoice("cus_1") | {"parent": None, "subscription": "sub_1"}

    assert read(now, AT) == read(before, AT) == an_overdue(status="paid", finalized_at=1_700_000_000)


UNKEPT: list[dict[str, Any]] = [
    {"parent": None},
    {"id": None},
    {"status": None},
    {"status": "deleted"},
]


@pytest.mark.parametrize("change", UNKEPT, ids=str)
def test_what_belongs_to_no_subscription_or_is_only_foretold_is_not_kept(change: dict[str, Any]) -> None:
    assert read(an_invoice("cus_1") | change, AT) is None


def test_what_is_learned_is_merged_with_what_is_held(database: Database) -> None:
    for one in (LIFE[2], LIFE[0], LIFE[4], LIFE[1]):
        learned(database, one)

    [row] = rows(
        database, "SELECT status, attempted, extract(epoch FROM finalized_at)::int AS at FROM invoices"
    )
    assert row == {"status": "paid", "attempted": True, "at": AT}


def test_one_batch_may_tell_of_an_invoice_several_times(database: Database) -> None:
    learned(database, *reversed(LIFE))

    assert rows(database, "SELECT status FROM invoices") == [{"status": "paid"}]


def test_what_is_known_already_writes_no_row(database: Database) -> None:
    learned(database, *LIFE)
    before = rows(database, "SELECT xmin::text, ctid::text FROM invoices")

    learned(database, *LIFE)

    assert rows(database, "SELECT xmin::text, ctid::text FROM invoices") == before
