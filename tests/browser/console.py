"""The console before an operator, and what can go wrong at night.

An `Operator` does what people do there: follows links, opens an action, says why, reloads until it is so. What
goes wrong is done by Stripe, or by whoever posts to our webhook in its place: nothing is written past the door.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from playwright.sync_api import Locator, expect

from tests.browser.stage import Actor, Stage
from tests.conftest import create_customer
from tests.deliveries import WEBHOOK, Json, a_subscription, an_event, at_stripe, signature, subscribe
from tests.sandbox.conftest import wait_until

HOME = "/billing/console/"
UPDATED = "customer.subscription.updated"


class Operator(Actor):
    """Ada, whom `make run` lets into the console."""

    def comes_in(self) -> None:
        """To the overview, by name and password."""
        self.page.goto(self.stage.service + HOME)
        self.tries("ada", secrets(self.stage)["CONSOLE_PASSWORD"])
        expect(self.page.get_by_role("heading", level=1)).to_have_text("Overview")

    def tries(self, name: str, password: str) -> None:
        """To sign in."""
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()

    @property
    def sheet(self) -> Locator:
        """All that the page says, without the ways to other pages."""
        return self.page.get_by_role("main")

    def part(self, name: str) -> Locator:
        """A part of the page, by its heading."""
        return self.page.get_by_role("region", name=name, exact=True)

    def turns_to(self, place: str) -> None:
        """Another page, by the navigation."""
        self.page.get_by_role("navigation", name="Console").get_by_role("link", name=place).click()
        expect(self.page.get_by_role("heading", level=1)).to_have_text(place)

    def follows(self, name: str) -> None:
        """The first link of that name on the page."""
        self.sheet.get_by_role("link", name=name).first.click()

    def waits_to_see(self, *words: str) -> None:
        """Reloads until the page says all of it."""

        def is_there() -> bool:
            self.page.reload()
            seen = self.sheet.inner_text()
            return all(word in seen for word in words)

        wait_until(is_there, seconds=20)

    def opens(self, action: str) -> Locator:
        """An action's form, which is answered."""
        self.sheet.locator("summary").get_by_text(action, exact=True).click()
        return self.sheet.locator("details[open]").filter(has=self.page.get_by_text(action, exact=True))

    def does(self, action: str, *, because: str, **fields: str) -> None:
        """An action, and says why."""
        form = self.opens(action)
        for label, value in fields.items():
            form.get_by_label(label.capitalize(), exact=True).fill(value)
        form.get_by_label("Reason").fill(because)
        form.get_by_role("button").click()

    def is_told(self, words: str) -> None:
        """What became of the last action."""
        expect(self.page.get_by_role("status")).to_contain_text(words)


@contextmanager
def on_duty(stage: Stage, **looks: object) -> Iterator[Operator]:
    """An operator who has signed in, with a browser of their own."""
    with stage.actor(**looks) as actor:
        operator = Operator(stage, actor.page)
        operator.comes_in()
        yield operator


def secrets(stage: Stage) -> dict[str, str]:
    """What this run has made up and keeps to itself."""
    kept: dict[str, str] = json.loads((stage.run.local / "dev.json").read_text())
    return kept


# ---- what goes wrong


def poison(stage: Stage) -> str:
    """A signed event that no code of ours can stomach: a subscription of nobody's. Its id."""
    event = an_event(UPDATED, {**a_subscription("cus_1"), "customer": None})
    body = json.dumps(event).encode()
    signed = signature(body, secret=secrets(stage)["STRIPE_WEBHOOK_SECRET"])
    answer = requests.post(stage.service + WEBHOOK, body, headers={"Stripe-Signature": signed}, timeout=10)
    assert answer.ok, answer.text
    return str(event["id"])


def a_stranger(stage: Stage) -> str:
    """A customer that was made in the Dashboard, buys there, and is no tenant's. Its id."""
    customer = create_customer(stage.control)
    takes_seats(stage, customer, 3)
    return customer


def takes_seats(stage: Stage, customer: str, seats: int) -> Json:
    """At Stripe the customer has so many seats of the plan Team from now on."""
    quantity = {"items[0][quantity]": str(seats)}
    held = at_stripe(stage.control, "GET", "subscriptions", customer=customer)["data"]
    if held:
        item = held[0]["items"]["data"][0]["id"]
        return at_stripe(
            stage.control, "POST", f"subscriptions/{held[0]['id']}", **{"items[0][id]": item}, **quantity
        )
    [price] = at_stripe(stage.control, "GET", "prices", **{"lookup_keys[]": "team_monthly"})["data"]
    return subscribe(stage.control, customer, price=price["id"], **quantity)
