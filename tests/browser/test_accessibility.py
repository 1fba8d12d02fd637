"""No page keeps anybody out: axe-core finds nothing serious, and everything can be done by keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]  # it has no stubs
from playwright.sync_api import Page, expect

from tests.browser.stage import Actor, Stage

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


def problems_of(page: Page) -> list[str]:
    """What axe-core calls serious or worse, with the first place of each; and a page wider than its window."""
    violations: list[dict[str, Any]] = Axe().run(page).response["violations"]
    is_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return ["wider than its window"] * is_wide + [
        f"{one['id']}: {one['help']} ({one['nodes'][0]['target']})"
        for one in violations
        if one["impact"] in GRAVE
    ]


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


def test_a_purchase_needs_no_mouse(stage: Stage) -> None:
    with stage.actor() as ada:
        ada.opens_the_demo()
        reach(ada.page, "Upgrade: Team, by the month")
        ada.page.keyboard.press("Enter")
        ada.page.wait_for_url("**/c/pay/**")
        reach(ada.page, "Pay $60.00")
        ada.page.keyboard.press("Enter")

        ada.page.wait_for_url("**/demo**")
        ada.sees_plan("Team, 5 seats")


def reach(page: Page, name: str) -> None:
    """By the tabulator, with the focus in sight all the way."""
    wanted = page.get_by_role("button", name=name, exact=True)
    for _ in range(60):
        page.keyboard.press("Tab")
        if wanted.evaluate("button => button === document.activeElement"):
            shows = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.evaluate(shows) != "none"
            return
    raise AssertionError(f"the tabulator never comes to {name}")
