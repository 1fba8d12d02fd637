"""`make pictures`: the pictures of the documents, taken of a story that is played for them.

They show what anybody gets who plays the same; only ids, dates and the times between them are others each time.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.stage import CHROMIUM, PATIENCE, Actor, Stage, a_stage
from tests.conftest import ROOT

PICTURES = ROOT / "docs" / "pictures"
WIDE = {"width": 1180, "height": 760}
PHONE = {"width": 390, "height": 844}


def main() -> None:
    """Play, and take them all."""
    if CHROMIUM is None:
        sys.exit("There is no Chromium here: install Debian's package chromium.")
    PICTURES.mkdir(exist_ok=True)
    with a_stage() as stage:
        stage.control.webhooks(delay=3)
        with stage.actor(viewport=WIDE, device_scale_factor=2, color_scheme="light") as ada:
            of_the_race(ada)
        with stage.actor(viewport=PHONE, device_scale_factor=2, color_scheme="dark") as ada:
            of_a_phone(ada, stage)


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


def take(page: Page, name: str) -> None:
    """What is in sight now."""
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=Path(PICTURES) / f"{name}.png", animations="disabled")
    print(f"docs/pictures/{name}.png")


if __name__ == "__main__":
    main()
