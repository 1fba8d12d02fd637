"""No page keeps anybody out: axe-core finds nothing serious, and everything can be done by keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]  # it has no stubs
from playwright.sync_api import Locator, Page, expect

from tests.browser.console import HOME, Operator, a_stranger, on_duty, poison, takes_seats
from tests.browser.stage import Actor, Stage
from tests.sandbox.conftest import wait_until

OF_LOOKS = ("color-contrast", "link-in-text-block", "scrollable-region-focusable", "target-size")
GRAVE = {"serious", "critical"}
PHONE = {"width": 390, "height": 844}


def the_tour(ada: Actor, stage: Stage) -> Iterator[str]:
    """Every page there is, in the states that look different. Each is on the screen when it is named."""
    page = ada.page
    ada.opens_the_demo()
    yield "the demo, free"
    ada.upgrades()
    yield "Checkout"
    ada.pays("A card that is declined")
    yield "Checkout, declined"
    ada.pays("A card with 3-D Secure")
    page.wait_for_url("**/authentication")
    yield "3-D Secure"
    page.get_by_role("button").first.click()
    page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats")
    yield "the demo, with a plan"
    yield from the_portal(ada)
    ada.makes_weather()
    yield "the control page"
    stage.control.decline(1)
    ada.lets_pass("+1 month", "+1 hour")
    ada.opens_the_demo()
    ada.sees_plan("Team, 6 seats", "payment failed")
    yield "the demo, in grace"
    ada.goes_to("Manage billing")
    yield "the portal, past due"
    page.get_by_role("table").get_by_role("link").first.click()
    page.wait_for_url("**/i/**")
    yield "an open invoice"
    page.goto(stage.control.url.replace("127.0.0.1", "localhost") + "/p/session/test_none")
    yield "a page that is gone"


def the_portal(ada: Actor) -> Iterator[str]:
    """The portal and all it leads to, and one seat more at the end."""
    page = ada.page
    ada.goes_to("Manage billing")
    yield "the portal"
    for link, name in [
        ("Change plan or seats", "choosing a plan"),
        ("Cancel subscription", "cancelling"),
        ("Add another", "changing the card"),
        ("Change details", "changing details"),
    ]:
        page.get_by_role("link", name=link).click()
        expect(page.get_by_role("link", name="Back to the overview")).to_be_visible()
        yield name
        page.get_by_role("link", name="Back to the overview").click()
    page.get_by_role("link", name=re.compile("^Return to")).click()
    page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats")
    ada.goes_to("Add a seat")
    yield "confirming a plan"
    page.get_by_role("button", name="Confirm").click()
    page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 6 seats")


def a_night(ada: Operator, stage: Stage) -> Iterator[str]:
    """Every page of the console, where something is wrong; in the end it is not any more."""
    page = ada.page
    page.goto(stage.service + HOME)
    ada.tries("ada", "a guess")
    expect(page.get_by_role("alert")).to_be_visible()
    yield "the sign-in, turned away"
    ada.comes_in()
    yield "the overview, calm"
    poison(stage)
    stranger = a_stranger(stage)
    ada.waits_to_see("is buried", "no tenant owns the customer")
    yield "the overview, with attention"
    yield from the_inbox(ada, stranger)
    yield from a_tenant(ada, stage)
    for place in ("Plans", "Audit", "Doctor"):
        ada.turns_to(place)
        yield place
    ada.turns_to("Consumers")
    ada.opens("New token")
    yield "consumers, with a form"
    page.goto(f"{stage.service}{HOME}nowhere")
    yield "a refusal"


def the_inbox(ada: Operator, stranger: str) -> Iterator[str]:
    """Its groups, a list and events; and at the end nothing of it is left to do."""
    ada.turns_to("Inbox")
    yield "the inbox, by reasons"
    ada.follows("names no customer")
    ada.opens("Ignore the one matching")
    yield "events, with a form"
    ada.follows("evt_")
    ada.does("Reveal", because="to see what it says")
    yield "an event, revealed"
    ada.does("Ignore", because="seen")
    ada.is_told("It is ignored.")
    ada.turns_to("Inbox")
    ada.follows(stranger)
    ada.follows("evt_")
    ada.does(f"Link {stranger} to a tenant", tenant=f"owner-of-{stranger}", because="asked for by phone")
    ada.is_told("now. ")


def a_tenant(ada: Operator, stage: Stage) -> Iterator[str]:
    """A tenant that Stripe says more of than we know."""
    customer = stage.run.customer()
    takes_seats(stage, customer, 5)
    wait_until(lambda: stage.document()["quantity"] == 5)
    stage.control.webhooks(drop=1)
    takes_seats(stage, customer, 9)
    ada.turns_to("Tenants")
    yield "tenants"
    ada.follows("acme")
    ada.opens("Add override")
    yield "a tenant, with a form"
    ada.follows("Compare with Stripe")
    yield "a comparison"
    ada.page.goto(f"{stage.service}{HOME}tenants/link?id=acme&customer={customer}")
    yield "a customer to be linked"


def problems_of(page: Page, *rules: str) -> list[str]:
    """What axe-core calls serious or worse, with the first place of each; and a page wider than its window.

    By all its rules, or by these.
    """
    options: dict[str, Any] = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
    violations: list[dict[str, Any]] = Axe().run(page, options=options).response["violations"]
    is_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return ["wider than its window"] * is_wide + [
        f"{one['id']}: {one['help']} ({one['nodes'][0]['target']})"
        for one in violations
        if one["impact"] in GRAVE
    ]


@contextmanager
def on_a_phone_in_the_dark(page: Page) -> Iterator[None]:
    """The same page, looked at so, and then as before."""
    size = page.viewport_size
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]  # Playwright's own size
    page.emulate_media(color_scheme="dark")
    yield
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(size)  # type: ignore[arg-type]  # None only where there is no window


@pytest.mark.parametrize(
    "looks",
    [{"color_scheme": "light"}, {"color_scheme": "dark", "viewport": PHONE}],
    ids=["wide and light", "phone and dark"],
)
def test_axe_finds_nothing_serious_on_any_page_and_none_is_too_wide(
    stage: Stage, looks: dict[str, Any]
) -> None:
    with stage.actor(reduced_motion="reduce", **looks) as ada:
        found = {name: problems for name in the_tour(ada, stage) if (problems := problems_of(ada.page))}

    assert found == {}


def test_axe_finds_nothing_serious_in_the_console_and_no_page_of_it_is_too_wide(stage: Stage) -> None:
    found = {}
    with stage.actor(reduced_motion="reduce") as actor:
        ada = Operator(stage, actor.page)
        for name in a_night(ada, stage):
            found[name] = problems_of(ada.page)
            with on_a_phone_in_the_dark(ada.page):
                found[f"{name}, on a phone in the dark"] = problems_of(ada.page, *OF_LOOKS)

    assert {name: problems for name, problems in found.items() if problems} == {}


def test_an_event_is_ignored_without_a_mouse(stage: Stage) -> None:
    with on_duty(stage) as ada:
        event = poison(stage)
        ada.waits_to_see("1 event is buried")
        ada.page.goto(f"{stage.service}{HOME}inbox/event?id={event}")
        reach(ada.page, ada.sheet.locator("summary", has_text="Ignore"))
        ada.page.keyboard.press("Enter")
        reach(ada.page, ada.page.get_by_label("Reason").locator("visible=true"))
        ada.page.keyboard.type("a test of the vendor's")
        ada.page.keyboard.press("Enter")

        ada.is_told("It is ignored.")


def test_a_purchase_needs_no_mouse(stage: Stage) -> None:
    with stage.actor() as ada:
        ada.opens_the_demo()
        reach(ada.page, button(ada.page, "Upgrade: Team, by the month"))
        ada.page.keyboard.press("Enter")
        ada.page.wait_for_url("**/c/pay/**")
        reach(ada.page, button(ada.page, "Pay $60.00"))
        ada.page.keyboard.press("Enter")

        ada.page.wait_for_url("**/demo**")
        ada.sees_plan("Team, 5 seats")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def reach(page: Page, wanted: Locator) -> None:
    """By the tabulator, with the focus in sight all the way."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if wanted.evaluate("wanted => wanted === document.activeElement"):
            shows = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.evaluate(shows) != "none"
            return
    raise AssertionError(f"the tabulator never comes to {wanted}")
