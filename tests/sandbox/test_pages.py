"""What all hosted pages have in common: who gets in, how long, and what they keep to themselves."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe
import time_machine

from sandbox.server import Control, running
from tests.sandbox.conftest import client_for
from tests.sandbox.visitor import Page, visit

BACK = "https://app.example.com/settings/billing?a=1&b=2"

A_CARD_TO_SAVE: Any = {
    "mode": "setup",
    "currency": "eur",
    "customer_email": "ada@acme.example",
    "success_url": "https://app.example.com/",
}


def open_session(api: stripe.StripeClient, **customer: str) -> str:
    """The address of a new session, as this machine reaches it."""
    id = api.v1.customers.create(customer).id  # type: ignore[arg-type]  # a few texts of a TypedDict
    session = api.v1.billing_portal.sessions.create({"customer": id, "return_url": BACK})
    return session.url.replace("localhost", "127.0.0.1")


def test_the_page_shows_who_it_is_for_and_the_way_back(api: stripe.StripeClient) -> None:
    page = visit(open_session(api, name="Ada & Sons", email="ada@acme.example"))

    assert page.status == 200
    assert page.links["Return to app.example.com"] == BACK
    for words in ("Ada & Sons", "ada@acme.example", "cus_", "This is a pretend Stripe"):
        assert words in page.text


def test_a_name_cannot_become_markup(api: stripe.StripeClient) -> None:
    page = visit(open_session(api, name="<script>alert(1)</script>"))

    assert "<script>alert(1)</script>" in page.text
    assert "script" not in {tag for tag, _ in page.tags}


def test_the_page_takes_nothing_from_elsewhere_and_leaks_nothing(api: stripe.StripeClient) -> None:
    url = open_session(api)
    page = visit(url)

    sheets = [given["href"] for tag, given in page.tags if tag == "link"]
    policy = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    assert page.answer.headers["Content-Security-Policy"] == policy
    assert page.answer.headers["Referrer-Policy"] == "same-origin"
    assert page.answer.headers["Cache-Control"] == "no-store"
    assert page.answer.headers["X-Content-Type-Options"] == "nosniff"
    assert [sheet[0] for sheet in sheets] == ["/"]
    assert requests.get(url.split("/p/")[0] + sheets[0]).headers["Content-Type"].startswith("text/css")


@pytest.mark.parametrize("path", ["/p/session/test_none", "/c/pay/cs_none", "/i/in_none"])
def test_an_unknown_address_is_a_page_too(sandbox: Control, path: str) -> None:
    page = visit(sandbox.url + path)

    assert page.status == 404
    assert "never given out" in page.text


@pytest.mark.parametrize("path", ["/p/", "/p/session/", "/p/session/test_none/nothing", "/favicon.ico"])
def test_no_other_address_is_a_page_and_that_is_told_by_one(sandbox: Control, path: str) -> None:
    page = visit(sandbox.url + path)

    assert page.status == 404
    assert "This is a pretend Stripe" in page.text
    assert "default-src 'none'" in page.answer.headers["Content-Security-Policy"]
    assert page.answer.headers["Cache-Control"] == "no-store"


def test_what_is_only_posted_to_leads_back_who_types_it(sandbox: Control) -> None:
    page = visit(f"{sandbox.url}/c/pay/cs_none/code")

    assert page.status == 405
    assert set(page.answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}
    assert "Go back to the page before" in page.text
    assert "default-src 'none'" in page.answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/_sandbox/nothing", "/_sandbox/latency"])
def test_a_program_that_asks_for_no_lever_is_told_so_in_json(sandbox: Control, path: str) -> None:
    with pytest.raises(ValueError, match="No such lever"):
        sandbox.send("PATCH", path.removeprefix("/_sandbox/"))


def test_a_session_lives_five_minutes_from_its_last_visit(api: stripe.StripeClient) -> None:
    with time_machine.travel("2026-01-21T12:00:00Z", tick=False) as clock:
        url = open_session(api)
        statuses = []
        for seconds in (300, 300, 301):
            clock.shift(timedelta(seconds=seconds))
            statuses.append(requests.get(url).status_code)
        late = Page(requests.post(f"{url}/payment-method", {"payment_method": "pm_card_visa"}))

    assert statuses == [200, 200, 410]
    assert (late.status, late.links["Go to app.example.com"]) == (410, BACK)


@pytest.mark.parametrize("task", [None, {"type": "payment_method_update"}], ids=["overview", "task"])
def test_a_page_outlives_its_customer(api: stripe.StripeClient, task: Any) -> None:
    id = api.v1.customers.create({"name": "Ada"}).id
    session: Any = {"customer": id, "return_url": BACK} | ({"flow_data": task} if task else {})
    url = api.v1.billing_portal.sessions.create(session).url

    api.v1.customers.delete(id)

    page = visit(url)
    assert page.status == 200
    assert "This customer was deleted." in page.text
    assert not page.buttons


def test_a_visit_finds_what_was_due_done(api: stripe.StripeClient) -> None:
    with time_machine.travel("2026-01-21T12:00:00Z", tick=False) as clock:
        session = api.v1.checkout.sessions.create(A_CARD_TO_SAVE)
        clock.shift(timedelta(days=1))
        page = visit(str(session.url))

    assert page.status == 410
    assert "This page has expired" in page.text


def test_what_was_done_on_a_page_outlives_the_sandbox(tmp_path: Path) -> None:
    data = tmp_path / "sandbox.json"
    with running(data=data) as sandbox:
        session = client_for(sandbox).v1.checkout.sessions.create(A_CARD_TO_SAVE)
        visit(str(session.url)).press("Save")
    with running(data=data) as sandbox:
        again = client_for(sandbox).v1.checkout.sessions.retrieve(session.id)

    assert again.status == "complete"
