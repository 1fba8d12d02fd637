"""Three nights on duty, played in the console: something is wrong, is found, and is mended."""

from __future__ import annotations

from playwright.sync_api import expect

from billing.operations.tenants import TIMES
from tests.browser.console import a_stranger, on_duty, poison, takes_seats
from tests.browser.stage import Stage
from tests.sandbox.conftest import wait_until

NOTHING = "Nothing. ok"


def test_without_a_script_a_poison_event_is_found_by_its_reason_and_ignored_and_nothing_needs_attention(
    stage: Stage,
) -> None:
    with on_duty(stage, java_script_enabled=False) as ada:
        expect(ada.part("Needs attention")).to_contain_text(NOTHING)
        event = poison(stage)
        ada.waits_to_see("buried")
        expect(ada.part("Needs attention")).to_contain_text(f"1 {TIMES} names no customer")

        ada.turns_to("Inbox")
        ada.follows("names no customer")
        ada.follows(event)
        expect(ada.part("What became of it")).to_contain_text("It was given up.")
        ada.does("Ignore", because="a test of the vendor's")
        ada.is_told("It is ignored.")
        expect(ada.part("Who did what")).to_contain_text("ada: event.ignore")

        ada.turns_to("Overview")
        expect(ada.part("Needs attention")).to_contain_text(NOTHING)
        ada.turns_to("Audit")
        deed = ada.sheet.get_by_role("listitem").first
        for word in ("ada", "event.ignore", event, "a test of the vendor's"):
            expect(deed).to_contain_text(word)


def test_an_unknown_customer_is_linked_from_one_of_its_events_and_its_tenant_has_what_was_bought(
    stage: Stage,
) -> None:
    with on_duty(stage) as ada:
        customer = a_stranger(stage)
        tenant = f"owner-of-{customer}"
        ada.waits_to_see("no tenant owns the customer")
        ada.turns_to("Inbox")
        ada.follows(customer)
        ada.follows("evt_")
        expect(ada.sheet).to_contain_text("No tenant owns its customer")

        ada.does(f"Link {customer} to a tenant", tenant=tenant, because="asked for by phone")
        ada.is_told(f"{customer} is {tenant}'s now.")
        ada.follows(tenant)

        expect(ada.part("What it may use")).to_contain_text(f"team_monthly {TIMES} 3")
        expect(ada.part("Timeline")).to_contain_text("asked for by phone")
        ada.turns_to("Overview")
        expect(ada.part("Needs attention")).to_contain_text(NOTHING)


def test_a_tenant_that_has_drifted_is_compared_with_stripe_and_made_equal(stage: Stage) -> None:
    customer = stage.run.customer()
    takes_seats(stage, customer, 5)
    wait_until(lambda: stage.document()["quantity"] == 5)
    before = stage.document()["version"]
    stage.control.webhooks(drop=1)
    stage.control.fault("503", path="/v1/events")  # the worker, too, has no other way to hear of it
    takes_seats(stage, customer, 9)

    with on_duty(stage) as ada:
        ada.turns_to("Tenants")
        ada.page.get_by_label("Begins with").fill("acme")
        ada.page.get_by_role("button", name="Find").click()
        ada.follows("acme")
        expect(ada.part("What it may use")).to_contain_text(f"team_monthly {TIMES} 5")
        ada.follows("Compare with Stripe")
        expect(ada.part("They differ")).to_be_visible()
        seats = ada.part("What the tenant may use").get_by_role("row", name="quantity differs")
        expect(seats.get_by_role("cell")).to_have_text(["5", "9"])

        form = ada.part("They differ")
        form.get_by_label("Reason").fill("seats had not arrived")
        form.get_by_role("button", name="Make equal").click()

        ada.is_told(f"v{before} → v{before + 1}")
        expect(ada.part("What it may use")).to_contain_text(f"team_monthly {TIMES} 9")
        expect(ada.part("Timeline").get_by_role("listitem").first).to_contain_text("quantity")
        assert stage.document()["quantity"] == 9
        ada.follows("Compare with Stripe")
        expect(ada.part("No difference")).to_be_visible()
