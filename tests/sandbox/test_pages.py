from datetime import timedelta
from html.parser import HTMLParser

import pytest
import requests
import stripe
import time_machine

from sandbox.server import Control

BACK = "https://app.example.com/settings/billing?a=1&b=2"


def open_session(api: stripe.StripeClient, **customer: str) -> str:
    """The address of a new session, as this machine reaches it."""
    id = api.v1.customers.create(customer).id  # type: ignore[arg-type]  # a few texts of a TypedDict
    session = api.v1.billing_portal.sessions.create(
        {"customer": id, "return_url": BACK, "flow_data": {"type": "payment_method_update"}}
    )
    return session.url.replace("localhost", "127.0.0.1")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_shows_who_it_is_for_and_the_way_back(api: stripe.StripeClient) -> None:
    page = requests.get(open_session(api, name="Ada & Sons", email="ada@acme.example"))

    links = [attributes["href"] for tag, attributes in Tags(page.text).found if tag == "a"]
    assert page.status_code == 200
    assert links == [BACK]
    for words in ("Ada &amp; Sons", "ada@acme.example", "cus_", "payment method update", "pretend Stripe"):
        assert words in page.text


def test_a_name_cannot_become_markup(api: stripe.StripeClient) -> None:
    page = requests.get(open_session(api, name="<script>alert(1)</script>"))

    assert "script" not in {tag for tag, _ in Tags(page.text).found}


def test_the_page_takes_nothing_from_elsewhere_and_leaks_nothing(api: stripe.StripeClient) -> None:
    url = open_session(api)
    page = requests.get(url)

    sheets = [attributes["href"] for tag, attributes in Tags(page.text).found if tag == "link"]
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Cache-Control"] == "no-store"
    assert [sheet[0] for sheet in sheets if sheet] == ["/"]
    assert requests.get(url.split("/p/")[0] + str(sheets[0])).headers["Content-Type"].startswith("text/css")


def test_an_unknown_address_is_a_page_too(sandbox: Control) -> None:
    page = requests.get(f"{sandbox.url}/p/session/test_none")

    assert page.status_code == 404
    assert "never given out" in page.text


@pytest.mark.parametrize("path", ["", "/p/session/", "/favicon.ico"])
def test_no_other_address_is_a_page(sandbox: Control, path: str) -> None:
    assert requests.get(sandbox.url + path).status_code == 404


def test_a_session_lives_five_minutes_from_its_last_visit(api: stripe.StripeClient) -> None:
    with time_machine.travel("2026-01-21T12:00:00Z", tick=False) as clock:
        url = open_session(api)
        statuses = []
        for seconds in (300, 300, 301):
            clock.shift(timedelta(seconds=seconds))
            statuses.append(requests.get(url).status_code)

    assert statuses == [200, 200, 410]


def test_a_page_outlives_its_customer(api: stripe.StripeClient) -> None:
    url = open_session(api, name="Ada")
    customer = requests.get(url).text.split("<code>")[1].split("</code>")[0]

    api.v1.customers.delete(customer)

    assert requests.get(url).status_code == 200
