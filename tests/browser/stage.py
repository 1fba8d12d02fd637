"""All of `make run`, and a browser before it: what the stories and the pictures are played on.

`a_stage` starts `bin/dev run` and Chromium; nothing of either is replaced. An `Actor` does what a person does,
with what a person sees: buttons, labels, links. Stories share one run, so each begins by `clear_the_stage`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from playwright.sync_api import Browser, Page, expect, sync_playwright

from sandbox.server import Control
from tests.deliveries import Json, at_stripe
from tests.sandbox.conftest import wait_until
from tests.test_dev import Run, billing, running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIETLY = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
HOUR = 3600
PATIENCE = 20_000  # milliseconds: the service takes a moment, and a busy machine several

LIVE = ("active", "trialing", "past_due", "unpaid", "paused", "incomplete")


@dataclass(frozen=True)
class Stage:
    """A run, its pretend Stripe, and a browser."""

    run: Run
    control: Control
    browser: Browser

    @property
    def service(self) -> str:
        """Where the service answers, and the demo beside it."""
        return self.address("service")

    def address(self, of: str) -> str:
        """What `make run` said in its summary."""
        found = re.search(rf"^  {of} +(\S+)", self.run.printed, re.MULTILINE)
        assert found, self.run.printed
        return found[1]

    def document(self) -> Json:
        """What Acme may use, asked with the token that was printed."""
        document: Json = self._ask("GET", "/api/entitlements")
        return document

    def _ask(self, method: str, path: str) -> Any:
        token = re.search(r"Bearer ([\w.-]+)", self.run.printed)
        assert token
        bearer = {"Authorization": f"Bearer {token[1]}"}
        return requests.request(method, self.service + path, headers=bearer, timeout=10).json()

    def command(self, *words: str, ends: tuple[int, ...] = (0,)) -> str:
        """What another terminal prints: `make billing ARGS="…"`."""
        done = billing(self.run.local, *words)
        assert done.returncode in ends, done.stderr
        return done.stdout

    def clear_the_stage(self) -> None:
        """Good weather, nobody subscribed to anything, and room for one more note."""
        self.control.send("DELETE", "faults")
        self.control.accept()
        self.control.dunning()
        self.control.webhooks(delay=0, drop=0, double=0, reverse=False, paused=False)
        for status in LIVE:
            for one in at_stripe(self.control, "GET", "subscriptions", status=status)["data"]:
                at_stripe(self.control, "DELETE", f"subscriptions/{one['id']}")
        wait_until(lambda: self.document()["state"] == "none", seconds=20)
        for note in self._ask("GET", "/demo/workspace")["notes"][2:]:
            self._ask("DELETE", f"/demo/workspace/notes/{note['id']}")

    @contextmanager
    def actor(self, **looks: object) -> Iterator[Actor]:
        """Somebody with a browser of their own; what its console complains of fails the story."""
        with self.browser.new_context(**looks) as context:  # type: ignore[arg-type]  # Playwright's own options
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            complaints: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
            yield Actor(self, page)
            unasked = [complaint for complaint in complaints if "Failed to load resource" not in complaint]
            assert not unasked


@contextmanager
def a_stage() -> Iterator[Stage]:
    """`bin/dev run` in a directory of its own, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="billing-stage-") as directory:
        with running(Path(directory) / ".local") as run, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIETLY)
            found = re.search(r"^  Stripe +(\S+)", run.printed, re.MULTILINE)
            assert found, run.printed
            yield Stage(run, Control(found[1], "sk_test_sandbox"), browser)
            browser.close()


@dataclass(frozen=True)
class Actor:
    """Ada, at her browser."""

    stage: Stage
    page: Page

    # ---- in the product

    def opens_the_demo(self) -> None:
        """The product, once it knows who she is and what she has."""
        self.page.goto(f"{self.stage.service}/demo")
        expect(self.page.locator("#plan")).not_to_be_empty(timeout=PATIENCE)

    def sees_plan(self, words: str, state: str = "") -> None:
        """Her plan says so, sooner or later."""
        expect(self.page.locator("#plan")).to_have_text(words, timeout=PATIENCE)
        expect(self.page.locator("#state")).to_contain_text(state, timeout=PATIENCE)

    def upgrades(self, button: str = "Upgrade: Team, by the month", seats: int | None = 5) -> None:
        """To Checkout, by a plan's button."""
        form = self.page.locator("#plans form").filter(has=self.page.get_by_role("button", name=button))
        if seats is not None:
            form.get_by_label("Seats").fill(str(seats))
        form.get_by_role("button", name=button).click()
        self.page.wait_for_url("**/c/pay/**")

    def buys(self, **wish: object) -> None:
        """Through Checkout with a card that pays, and back."""
        self.opens_the_demo()
        self.upgrades(**wish)  # type: ignore[arg-type]  # what upgrades takes
        self.pays()

    def goes_to(self, button: str) -> None:
        """To the portal, or to one task in it, by one of the plan's buttons."""
        self.page.locator("#billing").get_by_role("button", name=button, exact=True).click()
        self.page.wait_for_url("**/p/session/**")

    # ---- at the pretend Stripe

    def pays(self, by: str = "A card that pays") -> None:
        """Presses Checkout's button, with this to pay by; where it leads is the story's to say."""
        self.page.get_by_label(by).check()
        self.page.get_by_role("button", name=re.compile("^(Pay|Start)")).click()

    def makes_weather(self) -> None:
        """To the control page."""
        self.page.goto(self.stage.control.url.replace("127.0.0.1", "localhost"))

    def lets_pass(self, *buttons: str) -> None:
        """Time, by the clock's buttons."""
        self.makes_weather()
        for button in buttons:
            before = self.page.locator("#now").inner_text()
            self.page.get_by_role("button", name=button, exact=True).click()
            expect(self.page.locator("#now")).not_to_have_text(before)


def pasted(line: str) -> str:
    """What a line of the page does in a shell."""
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=30).stdout
