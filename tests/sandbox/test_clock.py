"""What happens by itself: each at its own instant, in order, with everything told."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sandbox import life
from sandbox.resources import Call, customers
from sandbox.store import Json, Store
from tests.sandbox.shop import DAY, START, Shop


@pytest.fixture
def shop() -> Shop:
    return Shop()


def told_on(shop: Shop, day: float) -> list[str]:
    """What was told at this instant."""
    instant = START + int(day * DAY)
    return [event["type"] for event in shop.events() if event["created"] == instant]


def test_a_trial_is_announced_ends_and_is_paid(shop: Shop) -> None:
    made = shop.subscribe(trial_period_days=14)

    shop.pass_days(15)

    assert made["status"] == "active"
    assert told_on(shop, 11) == ["customer.subscription.trial_will_end"]
    assert told_on(shop, 14) == ["customer.subscription.updated", "invoice.created"]
    assert told_on(shop, 14 + 1 / 24)[-2:] == ["invoice.paid", "invoice.payment_succeeded"]


def test_a_short_trial_is_announced_at_once(shop: Shop) -> None:
    shop.subscribe(trial_period_days=2)

    assert shop.told()[-1] == "customer.subscription.trial_will_end"


@pytest.mark.parametrize(
    ("behavior", "status", "told"),
    [
        ("create_invoice", "past_due", "customer.subscription.updated"),
        ("cancel", "canceled", "customer.subscription.deleted"),
        ("pause", "paused", "customer.subscription.paused"),
    ],
)
def test_a_trial_that_ends_without_a_card_ends_as_was_said(
    shop: Shop, behavior: str, status: str, told: str
) -> None:
    settings = shop.store.collection("customer")[shop.customer]["invoice_settings"]
    settings["default_payment_method"] = None
    made = shop.subscribe(
        trial_period_days=14, trial_settings={"end_behavior": {"missing_payment_method": behavior}}
    )

    shop.pass_days(15)

    assert made["status"] == status
    assert shop.told()[-1] == told


def test_a_renewal_is_drafted_then_an_hour_later_paid(shop: Shop) -> None:
    made = shop.subscribe()
    shop.pass_days(31)
    drafted = shop.latest_invoice(made)["status"]

    shop.pass_days(1 / 24)

    period = made["items"]["data"][0]
    assert (drafted, shop.latest_invoice(made)["status"]) == ("draft", "paid")
    assert period["current_period_start"] == START + 31 * DAY
    assert shop.latest_invoice(made)["billing_reason"] == "subscription_cycle"
    assert shop.latest_invoice(made)["lines"]["data"][0]["period"] == {
        "start": period["current_period_start"],
        "end": period["current_period_end"],
    }


def test_a_year_in_one_step_is_twelve_months_in_order(shop: Shop) -> None:
    made = shop.subscribe()

    shop.pass_days(364.5)

    instants = [event["created"] for event in shop.events()]
    assert instants == sorted(instants)
    assert shop.told().count("invoice.paid") == 12
    assert made["items"]["data"][0]["current_period_end"] == START + 365 * DAY


def test_one_step_and_many_steps_come_to_the_same(shop: Shop) -> None:
    other = Shop()
    for each in (shop, other):
        each.subscribe(trial_period_days=10)
        each.takes("pm_card_chargeCustomerFail")

    shop.pass_days(60)
    for _ in range(120):
        other.pass_days(0.5)

    def history(of: Shop) -> list[tuple[int, str]]:
        return [(event["created"], event["type"]) for event in of.events()]

    assert history(shop) == history(other)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("canceled", "customer.subscription.deleted"),
        ("unpaid", "customer.subscription.updated"),
        ("past_due", "invoice.payment_failed"),
    ],
)
def test_after_the_last_attempt_it_is_what_the_account_says(shop: Shop, wanted: str, told: str) -> None:
    shop.store.after_retries = wanted
    made = shop.subscribe()
    shop.takes("pm_card_chargeCustomerFail")

    shop.pass_days(31 + 22 + 0.5)

    failed = [event["created"] for event in shop.events("invoice.payment_failed")]
    assert [round((at - START) / DAY - 31) for at in failed] == [0, 3, 8, 15, 22]
    assert (made["status"], shop.told()[-1]) == (wanted, told)
    assert shop.latest_invoice(made)["next_payment_attempt"] is None


def test_an_end_for_want_of_payment_says_so(shop: Shop) -> None:
    made = shop.subscribe()
    shop.takes("pm_card_chargeCustomerFail")

    shop.pass_days(60)

    assert (made["status"], made["cancellation_details"]["reason"]) == ("canceled", "payment_failed")


def test_a_better_card_is_charged_at_the_next_attempt(shop: Shop) -> None:
    made = shop.subscribe()
    shop.takes("pm_card_chargeCustomerFail")
    shop.pass_days(32)
    assert made["status"] == "past_due"

    shop.takes("pm_card_visa")
    shop.pass_days(3)

    assert made["status"] == "active"
    assert shop.events()[-1]["data"]["previous_attributes"] == {"status": "past_due"}


def test_an_unpaid_subscription_gets_drafts_and_recovers_by_the_latest(shop: Shop) -> None:
    shop.store.after_retries = "unpaid"
    made = shop.subscribe()
    shop.takes("pm_card_chargeCustomerFail")
    shop.pass_days(70)
    assert (made["status"], shop.latest_invoice(made)["status"]) == ("unpaid", "draft")
    shop.takes("pm_card_visa")

    shop.pay(made["latest_invoice"])

    assert made["status"] == "active"


@pytest.mark.parametrize("when", [{"cancel_at_period_end": True}, {"cancel_at": START + 31 * DAY}])
def test_it_ends_when_it_was_to_end(shop: Shop, when: dict[str, Any]) -> None:
    made = shop.subscribe()
    shop.update(made, **when)

    shop.pass_days(40)

    assert (made["status"], made["ended_at"], made["canceled_at"]) == ("canceled", START + 31 * DAY, START)
    assert told_on(shop, 31) == ["customer.subscription.deleted"]


def test_a_first_invoice_nobody_pays_expires_after_23_hours(shop: Shop) -> None:
    made = shop.subscribe(payment_behavior="default_incomplete")
    shop.pass_days(22 / 24)
    waiting = made["status"]

    shop.pass_days(2 / 24)

    assert (waiting, made["status"]) == ("incomplete", "incomplete_expired")
    assert told_on(shop, 23 / 24) == ["invoice.updated", "invoice.voided", "customer.subscription.updated"]


@pytest.mark.parametrize(
    ("behavior", "left"),
    [("void", "void"), ("mark_uncollectible", "uncollectible"), ("keep_as_draft", "draft")],
)
def test_a_pause_of_collection_leaves_it_active_until_it_resumes(shop: Shop, behavior: str, left: str) -> None:
    made = shop.subscribe()
    shop.update(made, pause_collection={"behavior": behavior, "resumes_at": START + 40 * DAY})

    shop.pass_days(35)
    during = (made["status"], shop.latest_invoice(made)["status"])
    shop.pass_days(10)

    assert during == ("active", left)
    assert made["pause_collection"] is None
    assert told_on(shop, 40) == ["customer.subscription.updated"]


@pytest.mark.parametrize(
    ("start", "interval", "count", "dates"),
    [
        ("2027-01-31", "month", 1, ["2027-02-28", "2027-03-31", "2027-04-30"]),
        ("2027-01-31", "month", 3, ["2027-04-30", "2027-07-31"]),
        ("2028-02-29", "year", 1, ["2029-02-28", "2030-02-28", "2031-02-28", "2032-02-29"]),
        ("2027-01-01", "week", 2, ["2027-01-15", "2027-01-29"]),
        ("2027-01-01", "day", 30, ["2027-01-31", "2027-03-02"]),
    ],
)
def test_periods_keep_to_their_day_of_the_month(
    start: str, interval: str, count: int, dates: list[str]
) -> None:
    anchor = at = instant(start)
    found = []

    for _ in dates:
        at = life.next_date(anchor, interval, count, at)
        found.append(at)

    assert found == [instant(date) for date in dates]


def instant(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())


def test_real_time_is_caught_up_with(shop: Shop) -> None:
    made = shop.subscribe(trial_period_days=14)
    shop.store.clock = lambda: float(START + 20 * DAY)

    life.catch_up(shop.store)

    assert made["status"] == "active"
    assert told_on(shop, 14) == ["customer.subscription.updated", "invoice.created"]


def test_what_was_going_on_goes_on_after_a_restart(shop: Shop, tmp_path: Path) -> None:
    made = shop.subscribe(trial_period_days=14)
    shop.pass_days(12)
    shop.store.path = tmp_path / "sandbox.json"
    shop.store.save()

    again = Store(shop.store.path, clock=shop.store.clock)
    life.advance(again, 3 * DAY)

    subscription = again.find("subscription", made["id"])
    types = [event["type"] for event in again.collection("event").values()]
    assert again.now() == START + 15 * DAY
    assert (subscription["status"], types.count("customer.subscription.trial_will_end")) == ("active", 1)


def test_a_deleted_customer_takes_its_subscriptions_along(shop: Shop) -> None:
    made = shop.subscribe()

    customers.delete(Call(shop.store, {}, ""), shop.customer)
    shop.pass_days(60)

    assert made["status"] == "canceled"
    assert shop.told()[-2:] == ["customer.subscription.deleted", "customer.deleted"]


def test_many_subscriptions_are_advanced_in_one_order_of_time(shop: Shop) -> None:
    made: list[Json] = [shop.subscribe(trial_period_days=days) for days in (9, 3, 30, 14)]

    shop.pass_days(100)

    instants = [event["created"] for event in shop.events()]
    assert instants == sorted(instants)
    assert {subscription["status"] for subscription in made} == {"active"}
