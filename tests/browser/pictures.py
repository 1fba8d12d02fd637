"""`make pictures`: the pictures of the documents, taken of a story that is played for them.

They show what anybody gets who plays the same; only ids, dates and the times between them are others each time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from tests.browser.console import Operator, a_stranger, on_duty, poison, takes_seats
from tests.browser.stage import CHROMIUM, PATIENCE, Actor, Stage, a_stage
from tests.conftest import ROOT
from tests.sandbox.conftest import wait_until

PICTURES = ROOT / "docs" / "pictures"
WIDE = {"width": 1180, "height": 760}
PHONE = {"width": 390, "height": 844}
BY_NIGHT: dict[str, Any] = {"viewport": PHONE, "device_scale_factor": 2, "color_scheme": "dark"}


def main() -> None:
    """Play, and take them all."""
    if CHROMIUM is None:
        sys.exit("There is no Chromium here: install Debian's package chromium.")
    PICTURES.mkdir(exist_ok=True)
    with a_stage() as stage:
        stage.control.webhooks(delay=3)
        with stage.actor(viewport=WIDE, device_scale_factor=2, color_scheme="light") as ada:
            of_the_race(ada)
        with stage.actor(**BY_NIGHT) as ada:
            of_a_phone(ada, stage)
        stage.clear_the_stage()
        with on_duty(stage, viewport=WIDE, device_scale_factor=2, color_scheme="light") as operator:
            of_a_night(operator, stage)
        with on_duty(stage, **BY_NIGHT) as operator:
            of_the_same_on_a_phone(operator)


def of_the_race(ada: Actor) -> None:
    """Checkout, the panel that shows who came first, the portal, and the weather."""
    page = ada.page
    ada.opens_the_demo()
    ada.upgrades(seats=5)
    take(page, "checkout")
    ada.pays()
    page.wait_for_url("**/demo**")
    ada.sees_plan("Team, 5 seats")
    expect(page.locator("#race")).to_contain_text("webhook arrived", timeout=PATIENCE)
    take(page, "race")
    ada.goes_to("Manage billing")
    take(page, "portal")
    ada.makes_weather()
    take(page, "control")


def of_a_phone(ada: Actor, stage: Stage) -> None:
    """A payment that failed, as the product shows it on a phone at night."""
    stage.control.decline(1)
    ada.lets_pass("+1 month", "+1 hour")
    ada.opens_the_demo()
    ada.sees_plan("Team, 5 seats", "payment failed")
    take(ada.page, "grace")


def of_a_night(ada: Operator, stage: Stage) -> None:
    """What is wrong, why it is, a tenant's whole story, and how it stands beside Stripe."""
    customer = stage.run.customer()
    takes_seats(stage, customer, 5)
    wait_until(lambda: stage.document()["quantity"] == 5, seconds=PATIENCE / 1000)
    for _ in range(3):
        poison(stage)
    a_stranger(stage)
    ada.waits_to_see("3 events are buried", "no tenant owns the customer")
    take(ada.page, "console-overview")
    ada.turns_to("Inbox")
    take(ada.page, "console-inbox")
    ada.follows("names no customer")
    ada.follows("evt_")
    ada.opens("Ignore")
    take(ada.page, "console-event")
    ada.turns_to("Tenants")
    ada.follows("acme")
    ada.does("Add override", feature="notes", value="80", because="promised until they have moved")
    take(ada.page, "console-tenant")
    stage.control.webhooks(drop=1)
    takes_seats(stage, customer, 9)
    ada.follows("Compare with Stripe")
    take(ada.page, "console-compare")


def of_the_same_on_a_phone(ada: Operator) -> None:
    """For whoever is woken by it."""
    expect(ada.part("Needs attention")).to_contain_text("3 events are buried")
    take(ada.page, "console-phone")


def take(page: Page, name: str) -> None:
    """What is in sight now."""
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=Path(PICTURES) / f"{name}.png", animations="disabled")
    print(f"docs/pictures/{name}.png")


if __name__ == "__main__":
    main()
