"""The control page, used as a browser without scripts would: every form as it stands there, pressed."""

import json
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest
import requests
import stripe
from urllib3.filepost import encode_multipart_formdata

from sandbox import life
from sandbox.server import Control, running
from tests.sandbox.conftest import client_for, wait_until
from tests.sandbox.shop import DAY, Shop

Fields = dict[str, str]


class Page(HTMLParser):
    """What is on it, and what its forms would send."""

    def __init__(self, url: str, path: str = "/") -> None:
        super().__init__()
        self.url = url
        self.answer = requests.get(url + path)
        self.read(self.answer)

    def read(self, answer: requests.Response) -> None:
        self.reset()
        self.answer = answer
        self.forms: list[tuple[str, Fields, list[tuple[str, str]]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(answer.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        name, value = told.get("name") or "", told.get("value") or ""
        self.tags.append((tag, told))
        if tag == "form":
            assert (told["method"], told["enctype"]) == ("post", "multipart/form-data")
            self.forms.append((str(told["action"]), {}, []))
        elif tag == "select":
            self.choosing = name
        elif tag == "option" and ("selected" in told or self.choosing not in self.forms[-1][1]):
            self.forms[-1][1][self.choosing] = value
        elif tag == "input" and (told.get("type") != "checkbox" or "checked" in told):
            self.forms[-1][1][name] = value
        elif tag == "button":
            self.forms[-1][2].append((name, value))

    def form(self, lever: str, button: str = "", **like: str) -> Fields:
        """What the form with such a button, and with these fields, would send."""
        for action, fields, buttons in self.forms:
            pressed = [(name, value) for name, value in buttons if button in ("", name, value)]
            if action.split("?")[0] == f"/_sandbox/{lever}" and pressed and like.items() <= fields.items():
                self.action = action
                return fields | ({pressed[0][0]: pressed[0][1]} if pressed[0][0] else {})
        raise AssertionError(f"no such form: {lever} {button} {like}")

    def press(self, lever: str, button: str = "", like: Fields | None = None, /, **filled: str) -> "Page":
        """Fill in some fields, press a button, and see where that leads."""
        fields = self.form(lever, button, **(like or {}))
        assert filled.keys() <= fields.keys() | {"paused", "drop", "double", "reverse", "after"}
        body, kind = encode_multipart_formdata(fields | filled)  # requests sends no empty form
        headers = {"Content-Type": kind, "Sec-Fetch-Site": "same-origin"}
        answer = requests.post(self.url + self.action, body, headers=headers, allow_redirects=False)
        self.led_to = answer.headers.get("Location", "")
        if answer.status_code == 303:
            answer = requests.get(self.url + self.led_to)
        self.read(answer)
        return self

    def says(self, words: str) -> bool:
        return words in self.words

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", self.answer.text))


class Receiver(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Ear)
        self.url = f"http://127.0.0.1:{self.server_port}/webhooks/stripe"
        self.heard: list[str] = []
        self.status = 200


class Ear(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:  # the name is http.server's
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append(json.loads(body)["id"])
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def heard(api: stripe.StripeClient, receiver: Receiver) -> list[str]:
    """The ids of what an endpoint for everything has been told."""
    api.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["*"]})
    return receiver.heard


@pytest.fixture
def page(sandbox: Control) -> Page:
    return Page(sandbox.url)


@pytest.fixture
def world() -> Iterator[Control]:
    """A sandbox of its own, whose clock may be moved."""
    with running() as control:
        yield control


def sells(api: stripe.StripeClient) -> str:
    product = api.v1.products.create({"name": "Team"}).id
    recurring: Any = {"interval": "month"}
    price: Any = {"product": product, "currency": "usd", "unit_amount": 900, "recurring": recurring}
    return api.v1.prices.create(price).id


def checkout(api: stripe.StripeClient, price: str | None = None, **more: Any) -> stripe.checkout.Session:
    order = {"price": price or sells(api), "quantity": 3}
    session: Any = {"mode": "subscription", "line_items": [order], "success_url": "https://a.example/", **more}
    return api.v1.checkout.sessions.create(session)


# Time


@pytest.mark.parametrize(
    ("button", "least", "most"),
    [("3600", 3600, 3610), ("days", DAY, DAY + 10), ("months", 28 * DAY, 31 * DAY + 10)],
)
def test_time_passes_by_a_button(world: Control, button: str, least: int, most: int) -> None:
    before = world.now()

    page = Page(world.url).press("clock", button)

    assert page.led_to == "/#clock"
    assert least <= world.now() - before <= most


def test_any_number_of_days_passes_and_what_is_due_happens(world: Control) -> None:
    api = client_for(world)
    world.complete_checkout(checkout(api).id)
    before = world.now()

    Page(world.url).press("clock", "", {"days": "7"}, days="32")

    assert 32 * DAY <= world.now() - before < 32 * DAY + 10
    assert api.v1.invoices.list().data[0].billing_reason == "subscription_cycle"


@pytest.mark.parametrize(("days", "problem"), [("-1", "days"), ("soon", "days"), ("999999", "2999")])
def test_time_that_makes_no_sense_is_refused_on_the_page(page: Page, days: str, problem: str) -> None:
    page.press("clock", "", {"days": "7"}, days=days)

    [alert] = [told for _, told in page.tags if told.get("role") == "alert"]
    assert page.answer.status_code == 400
    assert problem in page.answer.text.split('role="alert"')[1].split("</p>")[0]
    assert "autofocus" in alert


def test_time_passes_in_months_of_the_calendar() -> None:
    shop = Shop()  # on the first of December

    life.advance(shop.store, months=2, days=1)

    assert shop.store.now() == 1_796_083_200 + (31 + 31 + 1) * DAY


@pytest.mark.parametrize("by", ["page", "call"])
def test_a_trial_is_brought_to_its_end(world: Control, by: str) -> None:
    api = client_for(world)
    world.complete_checkout(checkout(api, subscription_data={"trial_period_days": 20}).id)
    later = world.complete_checkout(checkout(api, subscription_data={"trial_period_days": 40}).id)[
        "subscription"
    ]
    end = api.v1.subscriptions.retrieve(later).trial_end

    if by == "page":
        Page(world.url).press("trial", subscription=later)
    else:
        world.pass_trial(later)

    assert end
    assert end <= world.now() < end + 10
    assert [one["status"] for one in world.customers()] == ["active", "active"]
    assert Page(world.url).says("Nobody is on trial.")
    with pytest.raises(ValueError, match="not on trial"):
        world.pass_trial(later)


# Payments


@pytest.mark.parametrize("by", ["page", "call"])
def test_the_next_charge_fails_whatever_the_card_and_the_one_after_goes_through(
    world: Control, by: str
) -> None:
    api = client_for(world)
    made = world.complete_checkout(checkout(api).id)["subscription"]
    if by == "page":
        page = Page(world.url).press("payments", times="1")
        assert page.led_to == "/#payments"
        assert page.says("The next charge is declined.")
    else:
        world.decline(1)

    world.advance(months=1, seconds=3700)
    failed = api.v1.subscriptions.retrieve(made).status
    counted = world.payments()
    world.advance(days=3)

    assert (failed, api.v1.subscriptions.retrieve(made).status) == ("past_due", "active")
    assert counted == {"declining": False, "left": 0}


def test_all_charges_fail_until_cards_decide_again_and_dunning_takes_its_course(world: Control) -> None:
    api = client_for(world)
    lost = world.complete_checkout(checkout(api).id)["subscription"]
    page = Page(world.url)
    page.press("payments", times="")
    page.press("dunning", retry_days="1, 2", after_retries="unpaid")
    declined = page.says("All charges are declined.")

    world.advance(months=1, seconds=3700)
    trying = api.v1.subscriptions.retrieve(lost).status
    world.advance(days=3)
    counted = world.payments()
    page.press("payments/clear")

    assert declined
    assert page.says("Cards decide.")
    assert (trying, api.v1.subscriptions.retrieve(lost).status) == ("past_due", "unpaid")
    assert counted == {"declining": True, "left": None}
    assert page.form("dunning") == {"retry_days": "1 2", "after_retries": "unpaid"}


def test_declines_count_attempts_and_not_free_invoices() -> None:
    shop = Shop()
    shop.store.declines_left = 1

    on_trial = shop.subscribe(trial_period_days=14)
    left = shop.store.declines_left
    shop.pass_days(14.1)

    assert (on_trial["status"], left, shop.store.declines_left) == ("past_due", 1, 0)


def test_a_first_charge_that_is_declined_leaves_a_subscription_incomplete() -> None:
    shop = Shop()
    shop.store.declines_left = 1

    declined = shop.subscribe()
    paid = shop.subscribe()

    assert (declined["status"], paid["status"]) == ("incomplete", "active")
    assert shop.latest_invoice(declined)["attempt_count"] == 1


def test_a_subscription_that_may_not_be_incomplete_is_not_made(
    sandbox: Control, api: stripe.StripeClient
) -> None:
    customer = api.v1.customers.create().id
    method = api.v1.payment_methods.attach("pm_card_visa", {"customer": customer}).id
    asked: Any = {
        "customer": customer,
        "items": [{"price": sells(api)}],
        "default_payment_method": method,
        "payment_behavior": "error_if_incomplete",
    }
    sandbox.decline(1)

    with pytest.raises(stripe.CardError):
        api.v1.subscriptions.create(asked)

    assert api.v1.subscriptions.create(asked).status == "active"


def test_declines_outlive_a_restart(tmp_path: Any) -> None:
    for times in (2, None):
        with running(data=tmp_path / "sandbox.json") as control:
            control.decline(times)
        with running(data=tmp_path / "sandbox.json") as control:
            assert control.payments() == {"declining": True, "left": times}


@pytest.mark.parametrize(
    ("filled", "named"),
    [
        ({"retry_days": "three"}, "retry_days"),
        ({"retry_days": "0"}, "retry_days"),
        ({"after_retries": "x"}, "after"),
    ],
)
def test_dunning_that_makes_no_sense_changes_nothing(
    sandbox: Control, page: Page, filled: Fields, named: str
) -> None:
    page.press("dunning", **filled)

    alert = page.answer.text.split('role="alert"')[1].split("</p>")[0]
    assert page.answer.status_code == 400
    assert named in alert
    assert sandbox.send("GET", "dunning") == {"after_retries": "canceled", "retry_days": [3, 5, 7, 7]}


# Outages


def test_stripe_fails_as_often_as_ordered_and_the_page_counts(
    sandbox: Control, api: stripe.StripeClient, page: Page
) -> None:
    page.press("faults", kind="429", times="2")
    with pytest.raises(stripe.RateLimitError):
        api.v1.customers.list()
    left = Page(sandbox.url)

    page.press("faults/clear")

    assert left.says("429 for all calls to /v1/: 1 left")
    assert page.says("Stripe answers as usual.")
    assert api.v1.customers.list().url == "/v1/customers"


def test_an_answer_may_be_lost_after_the_call_took_effect(
    sandbox: Control, api: stripe.StripeClient, page: Page
) -> None:
    page.press("faults", kind="500", after="true")
    with pytest.raises(stripe.APIError):
        api.v1.customers.create({"name": "Kept Ltd"})

    assert "which take effect: until cleared" in page.words
    assert sandbox.customers()[0]["name"] == "Kept Ltd"


def test_answers_take_as_long_as_the_page_says(sandbox: Control, page: Page) -> None:
    page.press("latency", seconds="0.25")

    assert sandbox.send("GET", "latency") == {"seconds": 0.25}
    assert page.says("Stripe answers as usual, after 0.25 s.")


# Webhooks


@pytest.mark.parametrize(
    ("switch", "value", "turned", "word"),
    [
        ("paused", "true", True, "Held."),
        ("drop", "1.0", 1.0, "Dropped."),
        ("double", "1.0", 1.0, "Doubled."),
        ("reverse", "true", True, "Reversed."),
        ("delay", "2.5", 2.5, "Delayed."),
    ],
)
def test_webhooks_go_wrong_one_way_and_right_again(
    sandbox: Control, page: Page, switch: str, value: str, turned: Any, word: str
) -> None:
    before = sandbox.webhooks(timeout_seconds=7.0)

    page.press("webhooks", **{switch: value})
    switched, told = sandbox.webhooks(), page.says(word)
    shown = page.form("webhooks")
    page.press("webhooks", **dict.fromkeys(["paused", "reverse"], "false"), drop="0", double="0", delay="0")

    assert switched == before | {switch: turned}
    assert told
    assert float(shown[switch]) == turned if value != "true" else shown[switch] == value
    assert sandbox.webhooks() == before
    assert page.says("Delivered as usual.")


def test_a_share_set_by_a_program_survives_the_page(sandbox: Control, page: Page) -> None:
    sandbox.webhooks(drop=0.4)

    Page(sandbox.url).press("webhooks", paused="true")

    assert sandbox.webhooks()["drop"] == 0.4
    assert Page(sandbox.url).says("(40 %)")


@pytest.mark.usefixtures("heard")
def test_what_was_dropped_is_seen_as_dropped_and_can_be_resent(
    sandbox: Control, receiver: Receiver, page: Page
) -> None:
    page.press("webhooks", drop="1.0")
    lost = sandbox.happen("invoice.paid", {"id": "in_1", "customer": "cus_1"})["id"]
    [dropped] = [event for event in sandbox.events() if event["id"] == lost]
    seen = Page(sandbox.url)

    seen.press("deliveries", "", {"event": lost})
    sandbox.settled()

    [attempt] = dropped["tried"]
    assert (attempt["dropped"], attempt["status"], dropped["due"]) == (True, None, [])
    assert (dropped["object"], dropped["customer"], dropped["pending_webhooks"]) == ("in_1", "cus_1", 1)
    assert "dropped never sent" in seen.words
    assert seen.led_to == f"/#{lost}"
    assert receiver.heard == [lost]
    assert "200 attempt 1" in Page(sandbox.url).words


def test_what_is_held_is_seen_as_held_until_it_goes_out(sandbox: Control, page: Page, heard: list[str]) -> None:
    page.press("webhooks", paused="true")
    sandbox.happen("invoice.paid", {"id": "in_1"})
    held = Page(sandbox.url)

    page.press("webhooks", paused="false")
    sandbox.settled()

    assert "held attempt 1" in held.words
    assert held.says("One delivery is outstanding.")
    assert len(heard) == 1
    assert Page(sandbox.url).says("All deliveries are done.")


@pytest.mark.usefixtures("heard")
def test_what_failed_is_seen_with_its_answer_and_its_next_attempt(sandbox: Control, receiver: Receiver) -> None:
    receiver.status = 503
    sandbox.webhooks(retry_seconds=[3000.0])
    event = sandbox.happen("invoice.paid", {"id": "in_1"})["id"]
    wait_until(lambda: bool(sandbox.deliveries(event)))

    [seen] = sandbox.events()

    [attempt], [due] = seen["tried"], seen["due"]
    assert (attempt["status"], attempt["dropped"]) == (503, False)
    assert (due["state"], due["attempt"]) == ("waiting", 2)
    assert 2900 < due["seconds"] <= 3000
    assert "503 attempt 1" in Page(sandbox.url).words


def test_what_nobody_listens_to_is_seen_as_such(sandbox: Control) -> None:
    sandbox.happen("invoice.paid", {"place": 1})

    page = Page(sandbox.url)

    assert page.says("Nobody listens")
    assert "/_sandbox/deliveries" not in [action for action, *_ in page.forms]


def test_with_several_endpoints_the_page_says_which(
    sandbox: Control, api: stripe.StripeClient, heard: list[str]
) -> None:
    api.v1.webhook_endpoints.create({"url": "http://127.0.0.1:9/other", "enabled_events": ["*"]})
    sandbox.webhooks(retry_seconds=[])
    sandbox.happen("invoice.paid", {})
    sandbox.settled()

    page = Page(sandbox.url)

    assert page.says("http://127.0.0.1:9/other")
    assert "/webhooks/stripe" in page.words


def test_older_events_are_a_link_away_and_each_is_shown_once(sandbox: Control) -> None:
    made = [sandbox.happen("invoice.paid", {"place": place})["id"] for place in range(60)]

    seen, path = [], "/"
    while path:
        page = Page(sandbox.url, path)
        seen += [told["id"] for tag, told in page.tags if (told.get("id") or "").startswith("evt_")]
        older = [str(told["href"]) for tag, told in page.tags if tag == "a" and "before=" in str(told["href"])]
        path = older[0] if older else ""

    assert seen == made[::-1]
    assert [event["id"] for event in sandbox.events(before=made[1])] == made[:1]


@pytest.mark.usefixtures("heard")
def test_resending_an_older_event_leads_back_to_it(sandbox: Control) -> None:
    made = [sandbox.happen("invoice.paid", {"place": place})["id"] for place in range(30)]

    page = Page(sandbox.url, f"/?before={made[5]}").press("deliveries", "", {"event": made[4]})

    assert page.led_to == f"/?before={made[5]}#{made[4]}"
    assert page.says("Earlier events")


def test_an_event_that_is_gone_is_told_on_the_page(sandbox: Control) -> None:
    page = Page(sandbox.url, "/?before=evt_none")

    assert page.answer.status_code == 404
    assert page.says("No such event: &#39;evt_none&#39;")


def test_an_event_may_be_about_anything_at_any_time(sandbox: Control) -> None:
    sandbox.happen("invoice.paid", {"id": 7, "customer": {"id": "cus_1"}}, created=10**17)

    assert Page(sandbox.url).says(str(10**17))


# What waits, who is there, who called


def test_a_bank_debit_is_settled_from_the_page(sandbox: Control, api: stripe.StripeClient) -> None:
    sessions = [checkout(api, customer=api.v1.customers.create({"name": "Initech"}).id).id for _ in range(2)]
    for session in sessions:
        sandbox.complete_checkout(session, "pm_usBankAccount_success")
    page = Page(sandbox.url)
    waiting = {one["session"]: (one["name"], one["waits_for"]) for one in sandbox.pending()}

    page.press("settlement", "true", {"session": sessions[0]})
    page.press("settlement", "false", {"session": sessions[1]})

    statuses = [api.v1.checkout.sessions.retrieve(session).payment_status for session in sessions]
    assert [waiting[session] for session in sessions] == [("Initech", "bank")] * 2
    assert statuses == ["paid", "unpaid"]
    assert page.led_to == "/#pending"
    assert not {one["session"] for one in sandbox.pending()} & set(sessions)


def test_3d_secure_is_passed_or_failed_from_the_page(sandbox: Control, api: stripe.StripeClient) -> None:
    sessions = [checkout(api, customer_email="ada@acme.example").id for _ in range(2)]
    for session in sessions:
        sandbox.complete_checkout(session, "pm_card_threeDSecureRequired")
    page = Page(sandbox.url)

    page.press("authentication", "true", {"session": sessions[0]})
    page.press("authentication", "false", {"session": sessions[1]})

    statuses = [api.v1.checkout.sessions.retrieve(session).status for session in sessions]
    waiting = {one["session"]: one["waits_for"] for one in sandbox.pending()}
    assert statuses == ["complete", "open"]
    assert waiting[sessions[1]] == "customer"
    assert sessions[0] not in waiting


def test_an_open_checkout_has_its_link(sandbox: Control, api: stripe.StripeClient) -> None:
    session = checkout(api, customer_email="ada@acme.example")

    page = Page(sandbox.url)

    assert session.url in [told.get("href") for tag, told in page.tags if tag == "a"]
    assert page.says("The Checkout of ada@acme.example")


def test_what_comes_next_for_a_subscription(world: Control) -> None:
    api = client_for(world)
    price = sells(api)
    bought = world.complete_checkout(checkout(api, price, customer_email="ada@acme.example").id)["subscription"]
    tried = {"trial_period_days": 30}
    world.complete_checkout(checkout(api, price, subscription_data=tried).id)
    api.v1.customers.create({"name": "Nobody Ltd"})

    def next_of_all() -> list[Any]:
        return [(one["status"], one["next"]) for one in world.customers()]

    at_first = next_of_all()
    api.v1.subscriptions.update(bought, {"cancel_at_period_end": True})
    ending = next_of_all()[-1]
    api.v1.subscriptions.update(bought, {"cancel_at_period_end": False})
    world.decline()
    world.advance(months=1, seconds=3700)
    retried = next_of_all()[-1]
    api.v1.subscriptions.cancel(bought)

    last = world.customers()[-1]
    assert at_first == [(None, None), ("trialing", "trial ends"), ("active", "renews")]
    assert (ending, retried) == (("active", "ends"), ("past_due", "charged again"))
    assert (last["name"], last["plan"], last["quantity"]) == ("ada@acme.example", "Team", 3)
    assert (last["status"], last["next"], last["at"]) == ("canceled", None, None)


def test_what_is_due_by_now_has_happened_before_it_is_shown(world: Control) -> None:
    api = client_for(world)
    session = checkout(api, expires_at=world.now() + 1801).id
    world.send("POST", "clock", {"advance": 1800})

    wait_until(lambda: session not in {one["session"] for one in world.pending()})

    assert api.v1.checkout.sessions.retrieve(session).status == "expired"


def test_deleted_customers_are_not_shown(sandbox: Control, api: stripe.StripeClient) -> None:
    gone = api.v1.customers.create({"name": "Gone Ltd"}).id

    api.v1.customers.delete(gone)

    assert gone not in [one["customer"] for one in sandbox.customers()]
    assert Page(sandbox.url).answer.status_code == 200


def test_the_portal_of_a_customer_is_a_button_away(
    sandbox: Control, api: stripe.StripeClient, page: Page
) -> None:
    customer = api.v1.customers.create({"name": "Acme"}).id

    Page(sandbox.url).press("portal", "", {"customer": customer})
    page = Page(sandbox.url).press("portal", "", {"customer": customer})

    assert page.led_to.startswith("/p/session/")
    assert page.says("Acme")
    assert sandbox.portal(customer).startswith("http")


def test_the_latest_calls_are_shown_and_replays_are_told(sandbox: Control, api: stripe.StripeClient) -> None:
    for _ in range(25):
        api.v1.customers.list()
    for _ in range(2):
        api.v1.customers.create({}, {"idempotency_key": f"k-{sandbox.url}-console"})

    page = Page(sandbox.url)

    calls = page.answer.text.split('id="calls"')[1]
    assert calls.count('<th scope="row">') == 20
    assert calls.index("POST /v1/customers") < calls.index("replayed") < calls.index("GET /v1/customers")
    assert len(sandbox.send("GET", "requests?latest=3")) == 3


# The page itself


def test_names_cannot_become_markup(sandbox: Control, api: stripe.StripeClient) -> None:
    evil = "<script>alert(1)</script>"
    checkout(api, customer=api.v1.customers.create({"name": evil}).id)
    sandbox.happen(evil, {"id": evil, "customer": evil})

    page = Page(sandbox.url)

    assert [told["src"] for tag, told in page.tags if tag == "script"] == ["/assets/control.js"]
    assert evil not in page.answer.text


def test_the_page_takes_nothing_from_elsewhere_and_keeps_nothing(page: Page) -> None:
    policy = page.answer.headers["Content-Security-Policy"]
    sources = [told.get("src") or told.get("href") for tag, told in page.tags if tag in ("script", "link")]

    assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert page.answer.headers["Cache-Control"] == "no-store"
    assert sources
    for source in sources:
        assert str(source).startswith("/assets/")
        assert requests.get(page.url + str(source)).status_code == 200
    assert not [told for _, told in page.tags if "style" in told or any(name.startswith("on") for name in told)]


def test_every_field_has_a_label_and_every_id_is_its_own(sandbox: Control, api: stripe.StripeClient) -> None:
    tried = {"trial_period_days": 30}
    sandbox.complete_checkout(checkout(api, subscription_data=tried).id)

    page = Page(sandbox.url)

    ids = [told["id"] for _, told in page.tags if "id" in told]
    labelled = {told.get("for") for tag, told in page.tags if tag == "label"}
    fields = [
        told
        for tag, told in page.tags
        if tag in ("input", "select") and told.get("type") not in ("hidden", "checkbox")
    ]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert len(ids) == len(set(ids))
    assert {field.get("id") for field in fields} <= labelled
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


def test_the_script_reads_the_parts_that_are_there(page: Page) -> None:
    live = [told.get("id") for _, told in page.tags if "data-live" in told]

    assert len(live) > 5
    assert None not in live
    assert "data-live" in requests.get(f"{page.url}/assets/control.js").text


def test_a_program_may_send_json_under_any_type(sandbox: Control) -> None:
    answer = requests.post(
        f"{sandbox.url}/_sandbox/payments",
        data=json.dumps({"times": 2}),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )

    assert answer.json() == {"declining": True, "left": 2}


@pytest.mark.parametrize("latest", ["-1", "x", "1.5", "", "9" * 30])
def test_only_a_number_of_calls_can_be_asked_for(sandbox: Control, latest: str) -> None:
    with pytest.raises(ValueError, match="latest"):
        sandbox.send("GET", f"requests?latest={latest}")
