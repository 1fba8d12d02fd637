"""What a tenant may use: the status table, every boundary to the second, and what holds for whatever there is.

The tables say what is promised. The properties take random catalogues, facts, overrides, rules and moments,
most of the moments a second or an hour apart from each other's boundaries, and try to break it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing import invoices
from billing.catalogue import NEVER_READ, Catalogue, Price, Product, Rules
from billing.events import LATEST, Json
from billing.invoices import Invoice
from billing.overrides import Override
from billing.policy import DAY, NEWS_DUE, SLACK, Evaluation, Held, Tenant, evaluate, features_of, written
from billing.subscriptions import FINAL, Facts, Item
from tests.conftest import IS_SOAK
from tests.test_catalogue import a_price, a_product, monthly, sold

NOW = 1_800_000_000
MONTH = 30 * DAY
THE_END = LATEST - 1.0  # of time, as far as anybody looks ahead


def an_item(price: str = "price_team", quantity: int | None = 1, **changes: Any) -> Item:
    """An item of a subscription, in the period that begins now."""
    whole = {"id": f"si_of_{price}", "product": "prod_team", "period_start": NOW, "period_end": NOW + MONTH}
    return Item(price=price, quantity=quantity, **{**whole, **changes})


def a_subscription(
    status: str = "active", *items: Item, id: str = "sub_1", since: int | None = None, **changes: Any
) -> Held:
    """A subscription as it is held, of one unit of a team's plan unless `items` says otherwise."""
    nothing = dict.fromkeys(("cancel_at", "canceled_at", "ended_at", "trial_end", "pause_resumes_at"))
    whole = {"cancel_at_period_end": False, "pause_behavior": None, "latest_invoice_id": "in_1", **nothing}
    facts = Facts(status, items or (an_item(),), **{**whole, "started_at": NOW, **changes})
    return Held(id, facts, since)


TEAM = sold(
    a_product(metadata={"feature.sso": "true", "limit.projects": "50", "limit.seats": "quantity"}),
    a_price(),
    a_product("prod_free", metadata={"plan": "free", "limit.projects": "3"}),
)
OF_TEAM = {"projects": {"enabled": True, "limit": 50}, "sso": {"enabled": True}}
NOTHING = {
    "projects": {"enabled": False, "limit": 0},
    "seats": {"enabled": False, "limit": 0},
    "sso": {"enabled": False},
}
BY_DEFAULT = {**NOTHING, "projects": {"enabled": True, "limit": 3}}


def evaluated(
    *subscriptions: Held,
    catalogue: Catalogue = TEAM,
    entitlements: tuple[str, ...] = (),
    overrides: tuple[Override, ...] = (),
    now: float = NOW,
    **rules: Any,
) -> Evaluation:
    tenant = Tenant("acme", "cus_1", subscriptions, frozenset(entitlements))
    return evaluate(tenant, catalogue, overrides, Rules(**rules), now)


def document(*subscriptions: Held, **given: Any) -> Json:
    return evaluated(*subscriptions, **given).document


def stands(*subscriptions: Held, **given: Any) -> tuple[str, bool]:
    """State and access."""
    found = document(*subscriptions, **given)
    return found["state"], found["access"]


def features(*subscriptions: Held, **given: Any) -> Json:
    found: Json = document(*subscriptions, **given)["features"]
    return found


# ---- the status table

STATUSES = {
    "active": ("active", True),
    "trialing": ("trialing", True),
    "past_due": ("grace", True),
    "unpaid": ("suspended", False),
    "paused": ("suspended", False),
    "incomplete": ("pending", False),
    "incomplete_expired": ("none", False),
    "canceled": ("none", False),
    "a_status_of_next_year": ("suspended", False),
}


@pytest.mark.parametrize("status", STATUSES)
def test_state_and_access_follow_from_the_status(status: str) -> None:
    assert stands(a_subscription(status)) == STATUSES[status]


@pytest.mark.parametrize("status", STATUSES)
def test_features_are_had_with_access_and_by_default_without(status: str) -> None:
    seats = {"seats": {"enabled": True, "limit": 1}}
    expected = {**OF_TEAM, **seats} if STATUSES[status][1] else BY_DEFAULT

    assert features(a_subscription(status), default_plan="free") == expected


def test_nobody_without_a_subscription_has_access() -> None:
    assert document() == {
        "state": "none",
        "access": False,
        "plan": None,
        "quantity": None,
        "current_period_end": None,
        "trial_end": None,
        "grace_until": None,
        "cancel_at": None,
        "valid_until": None,
        "features": NOTHING,
        "stripe": {"customer": "cus_1", "subscription": None, "status": None},
        "livemode": False,
    }


def test_a_document_says_everything_about_its_subscription() -> None:
    found = document(a_subscription("active", an_item(quantity=12), cancel_at=NOW + DAY), livemode=True)

    assert found == {
        "state": "active",
        "access": True,
        "plan": "team",
        "quantity": 12,
        "current_period_end": "2027-02-14T08:00:00Z",
        "trial_end": None,
        "grace_until": None,
        "cancel_at": "2027-01-16T08:00:00Z",
        "valid_until": "2027-01-16T09:00:00Z",
        "features": {**OF_TEAM, "seats": {"enabled": True, "limit": 12}},
        "stripe": {"customer": "cus_1", "subscription": "sub_1", "status": "active"},
        "livemode": True,
    }


@pytest.mark.parametrize("status", ["incomplete_expired", "canceled"])
def test_what_is_over_is_not_spoken_of(status: str) -> None:
    assert document(a_subscription(status)) == document()


def test_collection_on_hold_keeps_access() -> None:
    found = evaluated(a_subscription(pause_behavior="void"))

    assert found.document == document(a_subscription())
    assert "collection is paused" in found.why["state"]


def test_whoever_is_paused_loses_what_stripe_still_entitles_to() -> None:
    found = document(a_subscription("paused"), entitlements=("sso",))

    assert found["features"] == NOTHING


def test_the_plan_of_a_suspended_subscription_is_still_named() -> None:
    found = document(a_subscription("unpaid"), default_plan="free")

    assert (found["plan"], found["features"]) == ("team", BY_DEFAULT)


# ---- grace


@pytest.mark.parametrize("days", [0, 8, 60, 364])
def test_stripes_own_retries_are_the_grace_where_no_days_are_set(days: int) -> None:
    found = document(a_subscription("past_due", since=NOW - days * DAY))

    assert (found["state"], found["grace_until"], found["valid_until"]) == ("grace", None, None)


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        (0, ("grace", True)),
        (7 * DAY - 1, ("grace", True)),
        (7 * DAY - 0.001, ("grace", True)),
        (7 * DAY, ("suspended", False)),
        (70 * DAY, ("suspended", False)),
    ],
)
def test_grace_ends_on_the_second_where_days_are_set(late: float, expected: tuple[str, bool]) -> None:
    assert stands(a_subscription("past_due", since=NOW), now=NOW + late, grace_days=7) == expected


def test_no_days_are_no_grace() -> None:
    assert stands(a_subscription("past_due", since=NOW), grace_days=0) == ("suspended", False)


def test_a_document_says_when_grace_ends() -> None:
    found = document(a_subscription("past_due", since=NOW - DAY), grace_days=7)

    assert (found["grace_until"], found["valid_until"]) == ("2027-01-21T08:00:00Z", "2027-01-21T08:00:00Z")


def test_grace_that_is_over_has_no_end() -> None:
    assert (
        document(a_subscription("past_due", since=NOW), now=NOW + 7 * DAY, grace_days=7)["grace_until"] is None
    )


def test_the_next_period_does_not_begin_another_grace() -> None:
    later = an_item(period_start=NOW + MONTH, period_end=NOW + 2 * MONTH)

    first = document(a_subscription("past_due", since=NOW), grace_days=40)
    second = document(a_subscription("past_due", later, since=NOW), grace_days=40, now=NOW + MONTH)

    assert second["grace_until"] == first["grace_until"]


def test_grace_begins_with_the_period_until_the_invoice_is_known() -> None:
    items = an_item(), an_item("price_other", period_start=NOW + DAY)

    assert document(a_subscription("past_due", *items), grace_days=1)["grace_until"] == "2027-01-16T08:00:00Z"


def test_grace_lasts_while_nobody_knows_since_when() -> None:
    undated = a_subscription("past_due", an_item(period_start=None, period_end=None))

    assert stands(undated, now=NOW + 400 * DAY, grace_days=0) == ("grace", True)


def test_whoever_has_never_paid_since_a_trial_has_no_grace_where_the_rules_say_so() -> None:
    failed = a_subscription("past_due", trial_end=NOW, since=NOW + 3600)

    assert stands(failed, now=NOW + 3600, grace_after_trial=False) == ("suspended", False)


def test_whoever_has_never_paid_since_a_trial_has_grace_otherwise() -> None:
    assert stands(a_subscription("past_due", trial_end=NOW, since=NOW + 3600)) == ("grace", True)


def test_nobody_pays_by_owing_for_a_second_period() -> None:
    later = an_item(period_start=NOW + MONTH, period_end=NOW + 2 * MONTH)
    failed = a_subscription("past_due", later, trial_end=NOW, since=NOW + 3600)

    assert stands(failed, now=NOW + MONTH, grace_after_trial=False) == ("suspended", False)


def test_whoever_never_had_a_trial_has_grace_whatever_the_rules_say_of_trials() -> None:
    assert stands(a_subscription("past_due", since=NOW), grace_after_trial=False) == ("grace", True)


def test_a_trial_that_ended_in_the_midst_of_what_is_overdue_changes_nothing() -> None:
    failed = a_subscription("past_due", trial_end=NOW + DAY, since=NOW)

    assert stands(failed, now=NOW + 2 * DAY, grace_after_trial=False) == ("grace", True)


RENEWALS = [(28, 31), (30, 31), (31, 30), (31, 28), (28, 28), (7, 7), (1, 1), (365, 366), (90, 92)]


@pytest.mark.parametrize(("first", "second"), RENEWALS)
def test_whoever_paid_a_shorter_month_has_paid(first: int, second: int) -> None:
    """The trial ends, one period is paid, and the renewal fails: the next period may be the longer one."""
    renewed = NOW + first * DAY
    failed = an_item(period_start=renewed, period_end=renewed + second * DAY)

    paid_once = a_subscription("past_due", failed, trial_end=NOW, since=renewed + 3600)

    assert stands(paid_once, now=renewed + 3600, grace_after_trial=False) == ("grace", True)


def test_whoever_paid_by_the_month_before_a_year_has_paid() -> None:
    upgraded = an_item(period_start=NOW + 40 * DAY, period_end=NOW + 405 * DAY)

    paid_once = a_subscription("past_due", upgraded, trial_end=NOW, since=NOW + 40 * DAY)

    assert stands(paid_once, now=NOW + 41 * DAY, grace_after_trial=False) == ("grace", True)


# ---- ends


def test_a_trial_outlasts_its_end_by_an_hour_until_stripe_has_spoken() -> None:
    trial = a_subscription("trialing", trial_end=NOW)

    assert stands(trial, now=NOW + SLACK - 1) == ("trialing", True)
    assert stands(trial, now=NOW + SLACK) == ("suspended", False)


def test_a_document_says_when_a_trial_ends() -> None:
    found = document(a_subscription("trialing", trial_end=NOW + DAY))

    assert (found["trial_end"], found["valid_until"]) == ("2027-01-16T08:00:00Z", "2027-01-16T09:00:00Z")


def test_a_trial_of_the_past_is_not_spoken_of() -> None:
    assert document(a_subscription(trial_end=NOW - DAY))["trial_end"] is None


def test_a_trial_without_an_end_lasts() -> None:
    assert stands(a_subscription("trialing"), now=NOW + 1000 * DAY) == ("trialing", True)


@pytest.mark.parametrize("status", ["active", "trialing", "past_due", "unpaid", "paused", "incomplete", "new"])
def test_an_end_comes_an_hour_after_it_was_due_whatever_the_status(status: str) -> None:
    ending = a_subscription(status, cancel_at=NOW + DAY)

    before, after = document(ending, now=NOW + DAY + SLACK - 1), document(ending, now=NOW + DAY + SLACK)

    assert (before["state"], before["cancel_at"]) == (
        STATUSES.get(status, ("suspended",))[0],
        "2027-01-16T08:00:00Z",
    )
    assert after == document()


def test_a_period_that_is_not_renewed_is_an_end() -> None:
    ending = a_subscription("active", cancel_at_period_end=True)

    assert document(ending)["cancel_at"] == document(ending)["current_period_end"] == "2027-02-14T08:00:00Z"
    assert stands(ending, now=NOW + MONTH + SLACK - 1) == ("active", True)
    assert stands(ending, now=NOW + MONTH + SLACK) == ("none", False)


def test_of_several_periods_the_last_is_the_end() -> None:
    items = an_item(), an_item("price_yearly", period_end=NOW + 12 * MONTH), an_item("p", period_end=None)

    assert document(a_subscription("active", *items, cancel_at_period_end=True))["cancel_at"] == written(
        NOW + 12 * MONTH
    )


def test_a_given_moment_is_the_end_before_the_periods() -> None:
    ending = a_subscription("active", cancel_at_period_end=True, cancel_at=NOW + DAY)

    assert document(ending)["cancel_at"] == "2027-01-16T08:00:00Z"


def test_an_end_nobody_knows_the_moment_of_does_not_come() -> None:
    ending = a_subscription("active", an_item(period_end=None), cancel_at_period_end=True)

    assert stands(ending, now=NOW + 1000 * DAY) == ("active", True)


def test_an_end_within_the_trial_comes_first() -> None:
    ending = a_subscription("trialing", trial_end=NOW + 14 * DAY, cancel_at=NOW + DAY)

    assert document(ending)["valid_until"] == "2027-01-16T09:00:00Z"
    assert stands(ending, now=NOW + DAY + SLACK) == ("none", False)


def test_an_end_within_grace_comes_first() -> None:
    ending = a_subscription("past_due", cancel_at=NOW + DAY, since=NOW)

    assert document(ending, grace_days=7)["valid_until"] == "2027-01-16T09:00:00Z"
    assert stands(ending, now=NOW + DAY + SLACK, grace_days=7) == ("none", False)


def test_a_renewal_is_no_end() -> None:
    late = a_subscription("active")

    assert stands(late, now=NOW + 10 * MONTH) == ("active", True)
    assert document(late)["valid_until"] is None


# ---- several subscriptions

BEST_FIRST = ["active", "trialing", "past_due", "unpaid", "incomplete", "canceled"]


@pytest.mark.parametrize("worse", range(1, len(BEST_FIRST)))
@pytest.mark.parametrize("is_first", [True, False])
def test_the_best_of_several_is_the_one_spoken_of(worse: int, is_first: bool) -> None:
    good = a_subscription(BEST_FIRST[worse - 1], id="sub_z", started_at=NOW - DAY)
    bad = a_subscription(BEST_FIRST[worse], id="sub_a", started_at=NOW)

    found = document(*((good, bad) if is_first else (bad, good)))

    assert found["state"] == STATUSES[BEST_FIRST[worse - 1]][0]
    assert found["stripe"]["subscription"] == "sub_z"


def test_of_equals_the_younger_is_spoken_of_then_the_one_whose_id_comes_first() -> None:
    old = a_subscription(id="sub_a", started_at=NOW - 1)
    young, twin, ageless = (a_subscription(id=id) for id in ("sub_c", "sub_d", "sub_0"))
    ageless = replace(ageless, facts=replace(ageless.facts, started_at=None))

    for several in ((old, young, twin, ageless), (ageless, twin, young, old)):
        assert document(*several)["stripe"]["subscription"] == "sub_c"


def test_features_come_from_every_subscription_with_access() -> None:
    late = a_subscription("past_due", an_item(quantity=3), id="sub_2")
    dead = a_subscription("unpaid", an_item(quantity=100), id="sub_3")

    found = features(a_subscription("active", an_item(quantity=2)), late, dead)

    assert found["seats"] == {"enabled": True, "limit": 5}
    assert found["projects"] == {"enabled": True, "limit": 100}


def test_who_is_past_due_keeps_the_seats() -> None:
    seats = features(a_subscription("past_due", an_item(quantity=12)))["seats"]

    assert seats == {"enabled": True, "limit": 12}


@pytest.mark.parametrize("over", ["canceled", "incomplete_expired"])
def test_the_end_of_an_old_subscription_does_not_touch_the_new_one(over: str) -> None:
    new = a_subscription(id="sub_new", started_at=NOW)
    old = a_subscription(over, id="sub_old", started_at=NOW + 1, ended_at=NOW)

    assert evaluated(old, new) == evaluated(new)


def test_access_is_certain_until_the_last_of_several_ends() -> None:
    soon = a_subscription(id="sub_1", cancel_at=NOW + DAY)
    later = a_subscription("trialing", id="sub_2", trial_end=NOW + 2 * DAY)

    assert document(soon, later)["valid_until"] == written(NOW + 2 * DAY + SLACK)
    assert document(soon, later, a_subscription(id="sub_3"))["valid_until"] is None


# ---- plans


def test_the_default_plan_is_whoevers_has_no_subscription() -> None:
    found = document(default_plan="free")

    assert (found["plan"], found["access"], found["features"]) == ("free", False, BY_DEFAULT)


def test_the_default_plan_is_named_once_the_subscription_is_over() -> None:
    assert document(a_subscription("canceled"), default_plan="free") == document(default_plan="free")


def test_a_default_plan_that_is_not_in_the_catalogue_gives_nothing() -> None:
    found = document(default_plan="gratis")

    assert (found["plan"], found["features"]) == (None, NOTHING)


def test_the_default_plan_adds_nothing_to_what_was_bought() -> None:
    assert features(a_subscription(), default_plan="free")["projects"] == {"enabled": True, "limit": 50}


def test_the_default_plan_is_one_unit() -> None:
    free = sold(a_product(metadata={"plan": "free", "limit.seats": "2*quantity"}, entitles=["audit-log"]))

    assert features(catalogue=free, default_plan="free") == {
        "audit_log": {"enabled": True},
        "seats": {"enabled": True, "limit": 2},
    }


MAIN = sold(
    a_product(metadata={"plan": "legacy"}),
    a_price("price_unnamed", lookup_key=None, unit_amount=99_000),
    a_price("price_team", lookup_key="team", unit_amount=1200),
    a_price("price_support", lookup_key="support", unit_amount=500),
    a_price("price_tiered", lookup_key="tiered", unit_amount=None),
)


@pytest.mark.parametrize(
    ("prices", "plan"),
    [
        (["price_team"], "team"),
        (["price_support", "price_team"], "team"),
        (["price_unnamed", "price_support"], "support"),
        (["price_tiered", "price_support"], "support"),
        (["price_unnamed", "price_tiered"], "tiered"),
        (["price_unnamed"], "legacy"),
        (["price_of_last_year"], "legacy"),
        (["price_of_last_year", "price_team"], "team"),
    ],
)
def test_the_dearest_item_that_has_a_plans_key_is_the_plan(prices: list[str], plan: str) -> None:
    items = [an_item(price, quantity=number) for number, price in enumerate(prices, 1)]

    for several in (items, items[::-1]):
        found = document(a_subscription("active", *several), catalogue=MAIN)
        assert (found["plan"], found["quantity"]) == (plan, prices.index(found_in(prices, plan)) + 1)


def found_in(prices: list[str], plan: str) -> str:
    return f"price_{plan}" if f"price_{plan}" in prices else prices[0]


def test_items_alike_in_everything_are_told_apart_by_their_ids() -> None:
    one, other = an_item(id="si_a", quantity=3), an_item(id="si_b", quantity=4)

    assert document(a_subscription("active", other, one))["quantity"] == 3


def test_a_subscription_without_items_has_no_plan() -> None:
    nothing = replace(a_subscription(), facts=replace(a_subscription().facts, items=()))

    found = document(nothing)

    assert (found["plan"], found["quantity"], found["features"]) == (None, None, NOTHING)


def test_what_was_bought_of_an_unknown_product_gives_nothing_and_is_no_plan() -> None:
    found = document(a_subscription("active", an_item("price_gone", product="prod_gone")))

    assert (found["access"], found["plan"], found["features"]) == (True, None, NOTHING)


def test_an_unknown_price_of_a_known_product_gives_what_the_product_does() -> None:
    assert features(a_subscription("active", an_item("price_made_for_acme"))) == features(a_subscription())


def test_before_the_catalogue_was_read_nothing_is_known_of_features() -> None:
    found = document(a_subscription(), catalogue=NEVER_READ)

    assert (found["state"], found["plan"], found["features"]) == ("active", None, {})


# ---- limits


def given_by(*items: tuple[dict[str, str], int | None], entitlements: tuple[str, ...] = ()) -> Json:
    """What items with this metadata and these quantities come to, together."""
    prices = [a_price(f"price_{n}", metadata=says, lookup_key=None) for n, (says, _) in enumerate(items)]
    bought = [an_item(f"price_{n}", quantity) for n, (_, quantity) in enumerate(items)]
    return features(
        a_subscription("active", *bought), catalogue=sold(a_product(), *prices), entitlements=entitlements
    )


LIMITS: list[tuple[str, int | None, Json]] = [
    ("50", 1, {"enabled": True, "limit": 50}),
    ("50", 12, {"enabled": True, "limit": 50}),
    ("50", None, {"enabled": True, "limit": 50}),
    ("unlimited", 1, {"enabled": True, "limit": None}),
    ("quantity", 12, {"enabled": True, "limit": 12}),
    ("10*quantity", 12, {"enabled": True, "limit": 120}),
    ("quantity", 0, {"enabled": False, "limit": 0}),
    ("10*quantity", None, {"enabled": False, "limit": 0}),
    ("0", 12, {"enabled": False, "limit": 0}),
    ("0*quantity", 12, {"enabled": False, "limit": 0}),
    ("fifty", 12, {"enabled": False, "limit": 0}),
]


@pytest.mark.parametrize(("says", "quantity", "value"), LIMITS)
def test_a_limit_is_what_its_item_says(says: str, quantity: int | None, value: Json) -> None:
    assert given_by(({"limit.projects": says}, quantity)) == {"projects": value}


SUMS: list[tuple[str, str, Json]] = [
    ("50", "10", {"enabled": True, "limit": 60}),
    ("50", "10*quantity", {"enabled": True, "limit": 70}),
    ("quantity", "quantity", {"enabled": True, "limit": 3}),
    ("50", "unlimited", {"enabled": True, "limit": None}),
    ("0", "unlimited", {"enabled": True, "limit": None}),
    ("50", "0", {"enabled": True, "limit": 50}),
    ("50", "fifty", {"enabled": True, "limit": 50}),
    ("0", "fifty", {"enabled": False, "limit": 0}),
]


@pytest.mark.parametrize(("one", "other", "value"), SUMS)
def test_limits_of_several_items_add_up_and_unlimited_absorbs_them(one: str, other: str, value: Json) -> None:
    items = ({"limit.projects": one}, 1), ({"limit.projects": other}, 2)

    assert given_by(*items)["projects"] == value


def test_the_order_of_items_does_not_change_their_sum() -> None:
    items = [({"limit.projects": says}, 1) for says in ("unlimited", "5", "quantity", "fifty")]

    assert given_by(*items) == given_by(*items[::-1])


def test_a_feature_is_on_where_any_item_gives_it() -> None:
    assert given_by(({"feature.sso": "false"}, 1), ({"feature.sso": "true"}, 1)) == {"sso": {"enabled": True}}


def test_a_feature_that_has_no_limit_anywhere_has_none() -> None:
    assert given_by(({"feature.sso": "false"}, 1)) == {"sso": {"enabled": False}}


def test_a_limited_feature_that_is_given_without_a_number_is_endless() -> None:
    catalogue = sold(
        a_product(metadata={"feature.projects": "true"}), a_product("p", metadata={"limit.projects": "5"})
    )

    assert features(a_subscription(), catalogue=catalogue)["projects"] == {"enabled": True, "limit": None}


def test_an_entitlement_of_stripes_gives_what_no_metadata_speaks_of() -> None:
    assert given_by(entitlements=("audit-log", "NOT A KEY")) == {"audit_log": {"enabled": True}}


def test_an_entitlement_of_stripes_leaves_the_number_to_the_metadata() -> None:
    found = given_by(({"limit.projects": "10*quantity"}, 2), entitlements=("projects",))

    assert found == {"projects": {"enabled": True, "limit": 20}}


WITH_SUPPORT = sold(a_product(), a_price(), a_product("prod_support", entitles=["support"]))
SUPPORT = an_item("price_support", product="prod_support")


def test_an_entitlement_of_what_is_paused_is_not_had_by_another_subscription() -> None:
    paused = a_subscription("paused", SUPPORT, id="sub_2")

    found = features(a_subscription(), paused, catalogue=WITH_SUPPORT, entitlements=("support",))

    assert found == {"support": {"enabled": False}}


def test_an_entitlement_is_had_where_any_subscription_with_access_entitles_to_it() -> None:
    paused, paid = a_subscription("paused", SUPPORT, id="sub_2"), a_subscription("active", SUPPORT)

    found = features(paid, paused, catalogue=WITH_SUPPORT, entitlements=("support",))

    assert found == {"support": {"enabled": True}}


@pytest.mark.parametrize("over", ["canceled", "incomplete_expired"])
def test_an_entitlement_that_outlasts_a_subscription_is_anothers(over: str) -> None:
    """Stripe gives none for what is over: this one was attached to the other product when that was bought."""
    old = a_subscription(over, SUPPORT, id="sub_2")

    found = features(a_subscription(), old, catalogue=WITH_SUPPORT, entitlements=("support",))

    assert found == {"support": {"enabled": True}}


@pytest.mark.parametrize("says", ["fifty", "0", "", "0*quantity"])
def test_a_limit_that_gives_nothing_is_not_made_endless_by_an_entitlement(says: str) -> None:
    found = given_by(({"limit.projects": says}, 2), entitlements=("projects",))

    assert found == {"projects": {"enabled": False, "limit": 0}}


def test_a_default_plans_limit_that_gives_nothing_is_not_made_endless_by_its_feature() -> None:
    free = sold(a_product(metadata={"plan": "free", "limit.projects": "three"}, entitles=["projects"]))

    assert features(catalogue=free, default_plan="free") == {"projects": {"enabled": False, "limit": 0}}


def test_every_feature_is_listed_whoever_sells_it() -> None:
    catalogue = sold(
        a_product(metadata={"feature.of_mine": "true"}),
        a_price(),
        a_product("prod_other", metadata={"feature.of_another": "true"}, active=False, entitles=["attached"]),
        a_price("price_other", product="prod_other", metadata={"limit.of_a_price": "x"}, active=False),
        features=["of-nothing"],
    )

    assert features(a_subscription(), catalogue=catalogue) == {
        "attached": {"enabled": False},
        "of_a_price": {"enabled": False, "limit": 0},
        "of_another": {"enabled": False},
        "of_mine": {"enabled": True},
        "of_nothing": {"enabled": False},
    }


# ---- overrides


def an_override(feature: str, value: str, expires_at: float | None = None) -> Override:
    return Override(feature, value, "ana", "promised", expires_at)


OVERRIDDEN: list[tuple[str, str, Json]] = [
    ("sso", "true", {"enabled": True}),
    ("sso", "false", {"enabled": False}),
    ("projects", "true", {"enabled": True, "limit": None}),
    ("projects", "false", {"enabled": False, "limit": 0}),
    ("projects", "7", {"enabled": True, "limit": 7}),
    ("projects", "0", {"enabled": False, "limit": 0}),
    ("projects", "unlimited", {"enabled": True, "limit": None}),
    ("sso", "7", {"enabled": True, "limit": 7}),
    ("nowhere_else", "true", {"enabled": True}),
    ("nowhere_else", "7", {"enabled": True, "limit": 7}),
]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(("feature", "says", "value"), OVERRIDDEN)
def test_an_override_replaces_the_value_whatever_the_status(
    status: str, feature: str, says: str, value: Json
) -> None:
    without = features(a_subscription(status))

    found = features(a_subscription(status), overrides=(an_override(feature, says),))

    assert found == {**without, feature: value}


def test_an_override_needs_no_subscription_and_gives_no_access() -> None:
    found = document(overrides=(an_override("projects", "7"),))

    assert (found["access"], found["features"]["projects"]) == (False, {"enabled": True, "limit": 7})


@pytest.mark.parametrize(("now", "limit"), [(NOW - 1, 7), (NOW - 0.001, 7), (NOW, 50), (NOW + 1, 50)], ids=str)
def test_an_override_ends_on_the_second(now: float, limit: int) -> None:
    found = features(a_subscription(), overrides=(an_override("projects", "7", NOW),), now=now)

    assert found["projects"]["limit"] == limit


def test_an_override_of_nothing_else_is_gone_when_it_ends() -> None:
    assert "nowhere_else" not in features(overrides=(an_override("nowhere_else", "true", NOW),))


@pytest.mark.parametrize("says", ["", "yes", "quantity", "10*quantity", "0*QUANTITY", "-1", "ten"])
def test_an_override_that_makes_no_sense_changes_nothing(says: str) -> None:
    senseless = (an_override("projects", says), an_override("sso", says))

    assert features(a_subscription(), overrides=senseless) == features(a_subscription())


@pytest.mark.parametrize("expires_at", [math.inf, 253_402_300_800.0, LATEST])
def test_an_override_may_last_longer_than_any_calendar(expires_at: float) -> None:
    found = evaluated(overrides=(an_override("projects", "7", expires_at),))

    assert found.document["features"]["projects"]["limit"] == 7
    assert json.dumps([found.why, found.next_look], allow_nan=False)


# ---- why


@pytest.mark.parametrize(
    ("subscription", "now", "rules", "word"),
    [
        (a_subscription(), NOW, {}, "active"),
        (a_subscription("unpaid"), NOW, {}, "given up collecting"),
        (a_subscription("paused"), NOW, {}, "without a way to pay"),
        (a_subscription("incomplete"), NOW, {}, "first payment"),
        (a_subscription("new"), NOW, {}, "nobody here knows"),
        (a_subscription("canceled"), NOW, {}, "no subscription"),
        (a_subscription("past_due"), NOW, {}, "Stripe goes on trying"),
        (a_subscription("past_due", since=NOW), NOW, {"grace_days": 7}, "no more than 7 days"),
        (a_subscription("past_due", since=NOW), NOW + 7 * DAY, {"grace_days": 7}, "more than 7 days"),
        (a_subscription("past_due", trial_end=NOW), NOW, {"grace_after_trial": False}, "never paid"),
        (a_subscription("trialing", trial_end=NOW), NOW + SLACK, {}, "its trial has ended"),
    ],
)
def test_a_state_has_a_reason(subscription: Held, now: int, rules: dict[str, Any], word: str) -> None:
    assert word in evaluated(subscription, now=now, **rules).why["state"]


def test_a_feature_has_every_source_of_its_value() -> None:
    given = evaluated(
        a_subscription("active", an_item(quantity=2), an_item("price_old", None, product="prod_team")),
        entitlements=("projects",),
        overrides=(an_override("projects", "7", NOW + DAY), an_override("sso", "false", NOW)),
    )

    assert given.why["features"]["projects"] == [
        {"from": "subscription", "subscription": "sub_1", "price": "price_team", "quantity": 2, "says": "50"},
        {"from": "subscription", "subscription": "sub_1", "price": "price_old", "says": "50"},
        {"from": "entitlement", "says": "projects"},
        {
            "from": "override",
            "says": "7",
            "author": "ana",
            "reason": "promised",
            "expires_at": "2027-01-16T08:00:00Z",
        },
    ]
    assert [source["from"] for source in given.why["features"]["sso"]] == ["subscription"] * 2


def test_a_feature_of_the_default_plan_says_so() -> None:
    found = evaluated(default_plan="free").why["features"]

    assert found["projects"] == [{"from": "default_plan", "product": "prod_free", "says": "3"}]
    assert found["sso"] == []


def test_bad_metadata_is_shown_as_it_was_written() -> None:
    catalogue = sold(a_product(metadata={"limit.projects": "fifty"}), a_price())

    found = evaluated(a_subscription(), catalogue=catalogue).why["features"]

    assert found["projects"][0]["says"] == "fifty"


# ---- when to look again

NEXT_LOOKS: dict[str, tuple[Held, int, float | None]] = {
    "a renewal": (a_subscription(), NOW, NOW + MONTH + NEWS_DUE),
    "a renewal nobody told of": (a_subscription(), NOW + MONTH + NEWS_DUE, None),
    "an undated one": (a_subscription("active", an_item(period_end=None)), NOW, None),
    "an end of trial": (a_subscription("trialing", trial_end=NOW + DAY), NOW, NOW + DAY + NEWS_DUE),
    "after it": (a_subscription("trialing", trial_end=NOW), NOW + NEWS_DUE, NOW + SLACK),
    "an end": (a_subscription(cancel_at=NOW + DAY), NOW, NOW + DAY + NEWS_DUE),
    "an end nobody told of": (a_subscription(cancel_at=NOW), NOW + NEWS_DUE, NOW + SLACK),
    "an end of grace": (a_subscription("past_due", since=NOW - DAY), NOW, NOW + 6 * DAY),
    "an end of what is unpaid": (a_subscription("unpaid", cancel_at=NOW), NOW, NOW + SLACK),
    "an end after grace": (
        a_subscription("past_due", since=NOW - MONTH, cancel_at=NOW),
        NOW + NEWS_DUE,
        NOW + SLACK,
    ),
    "an end after a trial": (
        a_subscription("trialing", trial_end=NOW - DAY, cancel_at=NOW),
        NOW + NEWS_DUE,
        NOW + SLACK,
    ),
    "what is unpaid": (a_subscription("unpaid"), NOW, None),
    "what is over": (a_subscription("canceled", cancel_at=NOW + DAY), NOW, None),
}


@pytest.mark.parametrize(("subscription", "now", "expected"), NEXT_LOOKS.values(), ids=NEXT_LOOKS)
def test_the_next_look_is_when_something_ends_or_stripe_owes_word(
    subscription: Held, now: int, expected: float | None
) -> None:
    assert evaluated(subscription, now=now, grace_days=7).next_look == expected


def test_the_next_look_is_when_an_override_ends() -> None:
    ends = (
        an_override("sso", "true", NOW + 5),
        an_override("seats", "9", NOW + 2.5),
        an_override("x", "1", NOW),
    )

    assert evaluated(a_subscription(), overrides=ends).next_look == NOW + 2.5


# ---- whatever there is


@dataclass(frozen=True)
class World:
    """Everything a document is made of."""

    tenant: Tenant
    catalogue: Catalogue
    overrides: tuple[Override, ...]
    rules: Rules
    now: float

    def seen(self, **changes: Any) -> Evaluation:
        """What comes of it."""
        world = replace(self, **changes)
        return evaluate(world.tenant, world.catalogue, world.overrides, world.rules, world.now)

    def without_subscriptions(self) -> Evaluation:
        """What comes of it for somebody who never bought anything."""
        return self.seen(tenant=replace(self.tenant, subscriptions=(), entitlements=frozenset()))

    def moments(self) -> Iterator[float]:
        """Now, and each moment at which something may change, one after the other."""
        moment: float | None = self.now
        while moment is not None:
            yield moment
            moment = self.seen(now=moment).next_look


words = st.text(max_size=6)
METADATA = ["feature.sso", "feature.seats", "limit.seats", "limit.projects", "feature.projects", "feature.SSO"]
SAID = ["true", "false", "3", "0", "unlimited", "quantity", "10*quantity", "fifty", ""]
metadata = st.dictionaries(
    st.sampled_from([*METADATA, "plan", "limit."]) | words, st.sampled_from([*SAID, "free"]) | words, max_size=5
)
lookup_keys = st.sampled_from(["sso", "projects", "audit-log", "audit_log", "SSO"]) | words
entitled = st.frozensets(lookup_keys, max_size=3)
PRODUCTS = ["prod_1", "prod_2", "prod_3"]
PRICES = ["price_1", "price_2", "price_3", "price_4"]
# Moments some periods apart, and the seconds and hours around them; and any others.
near = st.builds(
    lambda days, around: NOW + days * DAY + around,
    st.sampled_from([-60, -30, -7, -1, 0, 1, 7, 14, 30, 365]),
    st.sampled_from([-SLACK, -NEWS_DUE, -1, 0, 1, NEWS_DUE, SLACK]),
)
moments = near | near | near | st.integers(0, LATEST - 500 * DAY)
perhaps = st.none() | moments

products = st.builds(
    lambda id, *rest: Product(id, *rest),
    st.sampled_from(PRODUCTS),
    words,
    st.none() | words,
    st.booleans(),
    metadata,
    entitled.map(lambda keys: tuple(sorted(keys))),
)
prices = st.builds(
    Price,
    st.sampled_from(PRICES),
    st.sampled_from([*PRODUCTS, "prod_gone"]),
    st.none() | st.sampled_from(["team", "pro"]) | words,
    st.booleans(),
    st.just("usd"),
    st.none() | st.integers(-5, 5),
    st.sampled_from(["month", None]),
    st.just(1),
    st.booleans(),
    metadata,
)
catalogues = st.builds(
    lambda products, prices, features: Catalogue(
        1, {one.id: one for one in products}, {one.id: one for one in prices}, tuple(sorted(features))
    ),
    st.lists(products, max_size=3),
    st.lists(prices, max_size=4),
    entitled,
)
items = st.builds(
    Item,
    st.sampled_from(["si_1", "si_2", "si_3"]),
    st.sampled_from([*PRICES, "price_gone"]),
    st.sampled_from([*PRODUCTS, "prod_gone"]),
    st.none() | st.integers(0, 20) | st.just(2**63 - 1),
    perhaps,
    perhaps,
)
facts = st.builds(
    Facts,
    st.sampled_from(list(STATUSES)),
    st.lists(items, max_size=3, unique_by=lambda item: item.id).map(tuple),
    st.booleans(),
    *(perhaps for _ in ("cancel_at", "canceled_at", "ended_at", "trial_end")),
    st.none() | st.just("void"),
    perhaps,
    st.none() | st.sampled_from(["in_1", "in_2"]),
    perhaps,
)
subscriptions = st.lists(
    st.builds(Held, st.sampled_from(["sub_1", "sub_2", "sub_3"]), facts, perhaps),
    max_size=3,
    unique_by=lambda held: held.id,
)
overridden = st.lists(
    st.builds(
        an_override,
        st.sampled_from(["sso", "seats", "projects", "nowhere_else"]),
        st.sampled_from(SAID) | words,
        perhaps,
    ),
    max_size=3,
    unique_by=lambda override: override.feature,
)
worlds = st.builds(
    World,
    st.builds(Tenant, st.just("acme"), st.none() | st.just("cus_1"), subscriptions.map(tuple), entitled),
    catalogues,
    overridden.map(tuple),
    st.builds(
        Rules,
        st.booleans(),
        st.none() | st.just("free") | words,
        st.none() | st.sampled_from([0, 1, 7, 365]),
        st.booleans(),
    ),
    moments,
)
examples = settings(
    max_examples=1500 if IS_SOAK else 50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],  # the machine may be busy with other tests
)


@examples
@given(worlds)
def test_whatever_there_is_comes_to_a_document_that_is_json(world: World) -> None:
    found = world.seen()

    assert json.loads(json.dumps(found.document, allow_nan=False)) == found.document
    assert json.loads(json.dumps(found.why, allow_nan=False)) == found.why


@examples
@given(worlds)
def test_every_feature_is_listed_and_limited_alike_for_everybody(world: World) -> None:
    features = world.seen().document["features"]

    assert features.keys() >= world.catalogue.keys
    assert all("limit" in features[key] for key in world.catalogue.limited)


@examples
@given(worlds)
def test_what_is_disabled_has_a_limit_of_nothing_and_nothing_else_has(world: World) -> None:
    values = world.seen().document["features"].values()

    assert all((value["limit"] == 0) is not value["enabled"] for value in values if "limit" in value)


@examples
@given(worlds)
def test_without_access_there_is_the_default_plan_and_overrides(world: World) -> None:
    found = world.seen().document
    if not found["access"]:
        assert found["features"] == world.without_subscriptions().document["features"]


@examples
@given(worlds)
def test_access_is_had_by_the_state_of_the_best_subscription(world: World) -> None:
    found = world.seen().document

    assert found["access"] is (found["state"] in ("active", "trialing", "grace"))
    assert (found["stripe"]["subscription"] is None) is (found["state"] == "none")


@examples
@given(worlds)
def test_each_subscription_alone_decides_on_access_as_it_does_among_others(world: World) -> None:
    alone = [
        world.seen(tenant=replace(world.tenant, subscriptions=(held,))).document["access"]
        for held in world.tenant.subscriptions
    ]

    assert world.seen().document["access"] is any(alone)


@examples
@given(worlds, facts, st.sampled_from(sorted(FINAL)))
def test_what_is_over_changes_nothing(world: World, ended: Facts, status: str) -> None:
    old = Held("sub_0", replace(ended, status=status), None)

    with_it = replace(world.tenant, subscriptions=(old, *world.tenant.subscriptions))

    assert world.seen(tenant=with_it) == world.seen()


@examples
@given(worlds)
def test_an_override_in_force_decides_alone(world: World) -> None:
    found, expected = world.seen().document["features"], world.without_subscriptions().document["features"]

    for override in world.overrides:
        if override.term and (override.expires_at is None or override.expires_at > world.now):
            assert found[override.feature] == expected[override.feature]


@examples
@given(worlds, st.randoms(use_true_random=False))
def test_the_order_of_anything_changes_nothing(world: World, chance: Any) -> None:
    def mixed(things: Any) -> tuple[Any, ...]:
        return tuple(chance.sample(list(things), len(things)))

    held = [
        replace(one, facts=replace(one.facts, items=mixed(one.facts.items)))
        for one in world.tenant.subscriptions
    ]
    shuffled = replace(
        world,
        tenant=replace(world.tenant, subscriptions=mixed(held)),
        catalogue=Catalogue(
            1,
            dict(mixed(world.catalogue.products.items())),
            dict(mixed(world.catalogue.prices.items())),
            mixed(world.catalogue.features),
        ),
        overrides=mixed(world.overrides),
    )

    one, other = world.seen(), shuffled.seen()

    assert json.dumps(one.document) == json.dumps(other.document)
    assert (one.why["state"], one.next_look) == (other.why["state"], other.next_look)


@examples
@given(worlds, st.floats(0, 1, exclude_max=True))
def test_nothing_changes_before_the_next_look(world: World, part: float) -> None:
    looks = list(world.moments())

    for look, after in zip(looks, [*looks[1:], math.inf], strict=True):
        found = world.seen(now=look)
        last = math.nextafter(after, 0) if after < math.inf else THE_END
        for moment in (look + (last - look) * part, last):
            later = world.seen(now=moment)
            assert (later.document, later.why, later.next_look) == (found.document, found.why, found.next_look)


@examples
@given(worlds)
def test_access_lasts_as_long_as_the_document_says_and_no_longer(world: World) -> None:
    access = [(moment, world.seen(now=moment).document["access"]) for moment in world.moments()]
    found = world.seen().document

    if found["access"]:
        ends = next((written(moment) for moment, has_access in access if not has_access), None)
        assert found["valid_until"] == ends


@examples
@given(worlds)
def test_access_that_time_has_ended_does_not_come_back_by_itself(world: World) -> None:
    access = [world.seen(now=moment).document["access"] for moment in world.moments()]

    assert access == sorted(access, reverse=True)


@examples
@given(worlds, st.integers(1, 10))
def test_more_units_never_give_less(world: World, more: int) -> None:
    def with_more(held: Held) -> Held:
        items = [replace(item, quantity=item.quantity and item.quantity + more) for item in held.facts.items]
        return replace(held, facts=replace(held.facts, items=tuple(items)))

    subscriptions = tuple(map(with_more, world.tenant.subscriptions))
    larger = replace(world.tenant, subscriptions=subscriptions)

    few, many = world.seen().document["features"], world.seen(tenant=larger).document["features"]

    for key, value in few.items():
        assert worth(many[key]) >= worth(value)


def worth(feature: Json) -> float:
    """So much of it: a feature without a number is as good as endless."""
    limit = feature.get("limit")
    return (math.inf if limit is None else limit) if feature["enabled"] else 0


@examples
@given(worlds)
def test_bad_words_give_no_more_than_no_words(world: World) -> None:
    """Whatever is not understood could as well be missing, and nobody would have less."""
    ours = world.catalogue
    bad = {(fault.where, fault.key) for fault in ours.faults}
    understood = Catalogue(
        1,
        {one.id: replace(one, metadata=without(bad, one.id, one)) for one in ours.products.values()},
        {one.id: replace(one, metadata=without(bad, one.id, one)) for one in ours.prices.values()},
        ours.features,
    )

    found, expected = world.seen().document["features"], world.seen(catalogue=understood).document["features"]

    for key in found.keys() & expected.keys():
        assert worth(found[key]) <= worth(expected[key])


def without(bad: set[tuple[str, str]], where: str, one: Product | Price) -> dict[str, str]:
    return {key: says for key, says in one.metadata.items() if (where, key) not in bad}


@examples
@given(worlds)
def test_a_plan_gives_one_unit_of_what_it_shows_on_the_pricing_page(world: World) -> None:
    for plan in world.catalogue.plans.values():
        quantity = None if plan.price.metered else 1
        bought = a_subscription("active", an_item(plan.price.id, quantity, product=plan.product.id))
        tenant = Tenant("acme", "cus_1", (bought,), frozenset(plan.product.entitles))

        found = world.seen(tenant=tenant, overrides=()).document["features"]

        assert found == features_of(plan, world.catalogue)


def test_a_metered_plan_shows_no_units_on_the_pricing_page() -> None:
    """Nobody buys a quantity of it, so what counts units gives nothing."""
    metered = a_price(recurring=monthly(usage_type="metered"), metadata={"limit.seats": "quantity"})
    catalogue = sold(a_product(), metered)

    shown = features_of(catalogue.plans["team"], catalogue)

    assert shown == features(a_subscription("active", an_item(quantity=None)), catalogue=catalogue)


reports = st.builds(
    Invoice,
    st.sampled_from(["in_1", "in_2", "in_3"]),
    st.just("sub_1"),
    st.just("open"),
    st.just(True),
    st.integers(NOW, NOW + 20 * DAY),
    st.integers(NOW, NOW + 30 * DAY),
)


@examples
@given(st.lists(reports, max_size=8), facts, st.integers(0, 365), st.sampled_from([0, 3, 6, 7, 8]))
def test_neither_retries_nor_more_failures_move_the_end_of_grace(
    reports: list[Invoice], facts: Facts, days: int, later: int
) -> None:
    first = Invoice("in_1", "sub_1", "open", True, NOW, NOW)
    known = {"in_1": first}
    for report in reports:
        known[report.id] = invoices.merge(known.get(report.id, report), report)
    since = min(one.finalized_at for one in known.values() if one.is_overdue and one.finalized_at)
    now, lasting = (
        NOW + later * DAY,
        replace(facts, status="past_due", cancel_at=None, cancel_at_period_end=False),
    )

    found = document(Held("sub_1", lasting, since), grace_days=days, now=now)

    assert found["grace_until"] == (written(NOW + days * DAY) if later < days else None)
