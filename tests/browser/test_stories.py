"""The whole business, played in a browser as a newcomer would play it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Route, expect

from sandbox.pages import words
from tests.browser.stage import HOUR, PATIENCE, Actor, Stage, pasted
from tests.deliveries import at_stripe
from tests.sandbox.conftest import wait_until

AWAY = "The service does not answer just now"  # as the demo says it


def test_who_buys_is_back_with_the_right_plan_before_the_webhook(ada: Actor, stage: Stage) -> None:
    stage.control.webhooks(delay=4)
    ada.opens_the_demo()
    ada.sees_plan("Free")
    version = stage.document()["version"]
    ada.upgrades(seats=5)
    expect(ada.page.locator("main")).to_contain_text("5 seats at $12.00 per month")
    expect(ada.page.locator("body")).to_contain_text("pretend Stripe")

    ada.pays()

    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats", "renews on")
    document = stage.document()
    assert (document["state"], document["plan"], document["quantity"]) == ("active", "team_monthly", 5)
    assert document["version"] == version + 1
    race = ada.page.locator("#race")
    expect(race).to_contain_text(f"document v{version + 1}, from the return", timeout=PATIENCE)
    expect(race).to_contain_text("webhook arrived", timeout=PATIENCE)
    assert stage.document()["version"] == version + 1  # the webhook has brought nothing new


@pytest.mark.parametrize("unanswered", ["**/demo/session", "**/api/plans", "**/checkout/cs_*"])
def test_a_return_while_the_service_is_away_is_made_good_when_it_is_back(
    ada: Actor, stage: Stage, unanswered: str
) -> None:
    stage.control.webhooks(drop=1)  # so that nothing but the return can tell
    ada.opens_the_demo()
    ada.upgrades(seats=5)
    ada.page.route(unanswered, lambda route: route.abort())

    ada.pays()

    ada.page.wait_for_url("**/demo?checkout=**")
    expect(ada.page.locator("main")).to_contain_text(AWAY)
    ada.page.reload()
    expect(ada.page.locator("main")).to_contain_text(AWAY)
    ada.page.unroute(unanswered)
    ada.sees_plan("Team, 5 seats", "renews on")
    expect(ada.page.locator("#news")).to_have_text("Welcome back. You have Team, 5 seats.")
    expect(ada.page.locator("main")).not_to_contain_text(AWAY)
    assert ada.page.url.endswith("/demo")


def test_who_returns_from_the_portal_while_the_service_is_away_sees_the_change_when_it_is_back(
    ada: Actor, stage: Stage
) -> None:
    stage.control.webhooks(drop=1)
    ada.buys(seats=5)
    ada.page.wait_for_url("**/demo")
    ada.goes_to("Add a seat")
    ada.page.route("**/api/entitlements?sync=true", lambda route: route.abort())

    ada.page.get_by_role("button", name="Confirm").click()

    ada.page.wait_for_url("**/demo?billing=updated")
    expect(ada.page.locator("#state")).to_contain_text(AWAY)
    ada.page.unroute("**/api/entitlements?sync=true")
    ada.sees_plan("Team, 6 seats", "renews on")
    ada.page.wait_for_url("**/demo")


def test_without_a_network_a_button_says_so_and_can_be_pressed_again(ada: Actor) -> None:
    ada.opens_the_demo()
    upgrade = ada.page.get_by_role("button", name="Upgrade: Team, by the month")
    note = ada.page.get_by_label("New note")

    ada.page.context.set_offline(True)
    upgrade.click()
    expect(ada.page.locator("#trouble")).to_contain_text(AWAY)
    expect(upgrade).to_be_enabled()
    note.fill("Ask the bank")
    ada.page.get_by_role("button", name="Add", exact=True).click()
    expect(ada.page.locator("#refusal")).to_contain_text(AWAY)
    expect(note).to_have_value("Ask the bank")
    ada.page.context.set_offline(False)

    ada.page.get_by_role("button", name="Add", exact=True).click()
    expect(ada.page.locator("#notes")).to_contain_text("Ask the bank")
    expect(ada.page.locator("#refusal")).to_be_empty()
    upgrade.click()
    ada.page.wait_for_url("**/c/pay/**")


def test_a_price_is_what_stripe_takes_it_for_in_any_currency(ada: Actor) -> None:
    currencies = ("usd", "jpy", "kwd", "huf", "isk", "ugx", "mga", "clp", "lbp")

    def abroad(route: Route) -> None:
        answer = route.fetch()
        plan = answer.json()["plans"][0]
        plans = [{**plan, "plan": currency, "amount": 123450, "currency": currency} for currency in currencies]
        route.fulfill(response=answer, json={"plans": plans})

    ada.page.route("**/api/plans", abroad)

    ada.opens_the_demo()

    expect(ada.page.locator("#plans .price")).to_contain_text(
        [words.money(123450, currency).replace("\N{NO-BREAK SPACE}", " ") for currency in currencies]
    )


def test_what_the_plan_limits_is_refused_before_and_allowed_after(ada: Actor) -> None:
    ada.opens_the_demo()
    note, add = ada.page.get_by_label("New note"), ada.page.get_by_role("button", name="Add", exact=True)
    note.fill("the last")
    add.click()
    note.fill("one too many")  # written while the last is on its way
    expect(ada.page.locator("#notes")).to_contain_text("the last")
    expect(note).to_have_value("one too many")
    add.click()
    expect(ada.page.locator("#refusal")).to_contain_text("Upgrade for more")

    ada.upgrades(seats=2)
    ada.pays()
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 2 seats")
    note.fill("there is room now")
    add.click()

    expect(ada.page.locator("#notes")).to_contain_text("there is room now")
    expect(ada.page.locator("#room")).to_contain_text("of 20")


def test_a_declined_card_leaves_the_checkout_open_and_another_card_pays_it(ada: Actor) -> None:
    ada.opens_the_demo()
    ada.upgrades()

    ada.pays("A card that is declined")
    expect(ada.page.get_by_role("alert")).to_contain_text("declined")
    ada.pays("A card with 3-D Secure")
    ada.page.get_by_role("button", name="Fail the check").click()
    ada.pays("A card with 3-D Secure")
    ada.page.get_by_role("button", name="Confirm that it is me").click()

    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats", "renews on")


def test_a_promotion_code_takes_a_fifth_off_for_three_months(ada: Actor, stage: Stage) -> None:
    ada.opens_the_demo()
    ada.upgrades(seats=5)
    ada.page.get_by_label("Promotion code").fill("welcome")
    ada.page.get_by_role("button", name="Apply").click()
    expect(ada.page.locator("#order + dl")).to_contain_text("\N{MINUS SIGN}$12.00")

    ada.page.get_by_role("button", name="Pay $48.00").click()
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats", "renews on")
    bought = stage.document()["stripe"]["subscription"]
    stage.control.advance(95 * 24 * HOUR)  # three months, whichever they are, and not four

    invoices = at_stripe(stage.control, "GET", "invoices", subscription=bought)["data"]
    assert [invoice["amount_paid"] for invoice in invoices] == [6000, 4800, 4800, 4800]  # the latest first


def test_who_turns_away_from_checkout_has_bought_nothing(ada: Actor, stage: Stage) -> None:
    ada.opens_the_demo()
    ada.upgrades()

    ada.page.get_by_role("link", name=re.compile("^Cancel")).click()

    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Free")
    assert stage.document()["access"] is False


def test_a_bank_debit_gives_the_plan_and_settles_when_the_bank_says_so(ada: Actor, stage: Stage) -> None:
    ada.opens_the_demo()
    ada.upgrades()
    ada.pays("Bank account that settles later")
    ada.page.wait_for_url("**/demo**")

    ada.makes_weather()
    ada.page.get_by_role("button", name="The bank pays").first.click()
    ada.opens_the_demo()

    ada.sees_plan("Team, 5 seats", "renews on")
    assert stage.document()["stripe"]["status"] == "active"


def test_a_seat_more_is_confirmed_in_the_portal_and_there_at_once(ada: Actor, stage: Stage) -> None:
    stage.control.webhooks(drop=1)
    ada.buys(seats=5)
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats")

    ada.goes_to("Add a seat")
    expect(ada.page.locator("main")).to_contain_text("6 seats")
    ada.page.get_by_role("button", name="Confirm").click()

    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 6 seats")


def test_two_tabs_of_the_control_page_do_not_undo_each_other(ada: Actor, stage: Stage) -> None:
    with stage.actor() as bob:
        ada.makes_weather()
        bob.makes_weather()
        bob.page.get_by_label("Doubled").check()
        ada.page.get_by_label("Dropped").check()
        ada.page.locator("#webhooks").get_by_role("button", name="Apply").click()
        expect(bob.page.get_by_label("Dropped")).to_be_checked(timeout=PATIENCE)  # by itself, and Doubled stays

        bob.page.locator("#webhooks").get_by_role("button", name="Apply").click()

        expect(bob.page.locator("#ways")).to_have_text("Dropped, doubled.")
        expect(ada.page.get_by_label("Doubled")).to_be_checked(timeout=PATIENCE)


def test_a_dropped_webhook_is_mended_by_reconcile(ada: Actor, stage: Stage) -> None:
    ada.buys()
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats")
    stage.control.settled()
    end = ada.page.locator('[data-line="end"] pre').inner_text()

    ada.makes_weather()
    ada.page.get_by_label("Dropped").check()
    ada.page.locator("#webhooks").get_by_role("button", name="Apply").click()
    expect(ada.page.locator("#ways")).to_contain_text("Dropped")
    pasted(end)
    ada.page.reload()
    expect(ada.page.locator("main")).to_contain_text("dropped")
    ada.opens_the_demo()
    ada.sees_plan("Team, 5 seats")  # nobody has told it

    printed = stage.command("reconcile", ends=(0, 1))  # by then its event may be late

    ada.sees_plan("Free")
    assert stage.document()["state"] == "none"
    assert re.search(r"[1-9]", printed)


def test_a_failed_payment_is_grace_until_another_card_has_paid(ada: Actor, stage: Stage) -> None:
    ada.buys()
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats")

    ada.makes_weather()
    ada.page.locator("#payments").get_by_role("button", name="Decline").click()
    ada.lets_pass("+1 month", "+1 hour")
    ada.opens_the_demo()
    ada.sees_plan("Team, 5 seats", "payment failed")
    assert (stage.document()["state"], stage.document()["access"]) == ("grace", True)

    ada.page.locator("#advice").get_by_role("button", name="Update card").click()
    ada.page.wait_for_url("**/p/session/**")
    ada.page.get_by_label("A card that pays").check()
    ada.page.get_by_role("button", name="Save").click()
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats", "payment failed")  # the invoice is still open
    ada.goes_to("Manage billing")
    ada.page.get_by_role("table").get_by_role("button", name=re.compile("^Pay ")).first.click()  # the latest
    ada.page.get_by_role("link", name=re.compile("^Return to")).click()

    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats", "renews on")
    assert stage.document()["state"] == "active"


def test_a_failed_payment_recovers_by_itself_when_the_retry_goes_through(ada: Actor, stage: Stage) -> None:
    ada.buys()
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats")
    stage.control.decline(1)
    ada.lets_pass("+1 month", "+1 hour")
    wait_until(lambda: stage.document()["state"] == "grace", seconds=20)

    ada.lets_pass("+1 day", "+1 day", "+1 day")

    wait_until(lambda: stage.document()["state"] == "active", seconds=20)


def test_who_cancels_keeps_the_plan_to_the_end_of_the_period_and_is_free_after(
    ada: Actor, stage: Stage
) -> None:
    ada.buys()
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats", "renews on")

    ada.goes_to("Cancel")
    ada.page.get_by_role("button", name="Cancel subscription").click()
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats", "ends on")
    assert stage.document()["access"] is True
    ada.lets_pass("+1 month", "+1 hour")
    ada.opens_the_demo()

    ada.sees_plan("Free")
    assert stage.document()["access"] is False


def test_a_cancellation_can_be_taken_back(ada: Actor) -> None:
    ada.buys()
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats")
    ada.goes_to("Cancel")
    ada.page.get_by_role("button", name="Cancel subscription").click()
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats", "ends on")

    ada.goes_to("Manage billing")
    ada.page.get_by_role("button", name="Don't cancel").click()
    ada.page.get_by_role("link", name=re.compile("^Return to")).click()

    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats", "renews on")


def test_a_trial_ends_in_a_paid_period(ada: Actor, stage: Stage) -> None:
    ada.opens_the_demo()
    ada.upgrades("Start the trial: Business, by the month", seats=None)
    expect(ada.page.locator("main")).to_contain_text("14 days free")
    ada.pays()
    ada.page.wait_for_url("**/demo**")
    ada.sees_plan("Business", "on trial until")

    ada.makes_weather()
    ada.page.get_by_role("button", name="To its end").click()
    stage.control.advance(2 * HOUR)
    ada.opens_the_demo()

    ada.sees_plan("Business", "renews on")


def test_without_stripe_the_product_goes_on_and_a_purchase_is_refused_in_words(
    ada: Actor, stage: Stage
) -> None:
    ada.opens_the_demo()
    stage.control.fault("503", path="/v1/")

    ada.page.get_by_role("button", name="Upgrade: Team, by the month").click()

    expect(ada.page.locator("#trouble")).not_to_be_empty(timeout=30_000)
    ada.opens_the_demo()
    ada.sees_plan("Free")
