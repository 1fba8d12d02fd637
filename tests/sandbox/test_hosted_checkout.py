"""Checkout as a customer sees it: what they read, choose and press, and where it leads."""

from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from sandbox.pages import words
from sandbox.server import Control, running
from tests.sandbox.shop import DAY
from tests.sandbox.visitor import Page, visit

SUCCESS = "https://app.example.com/done?session={CHECKOUT_SESSION_ID}&plan=team"
MINUS = "\N{MINUS SIGN}"
PLANS = "https://app.example.com/plans"

Made = stripe.checkout.Session


class Counter:
    """Where sessions are opened: three seats of Team for 12 euros a month each."""

    def __init__(self, api: stripe.StripeClient) -> None:
        self.api = api
        self.product = api.v1.products.create({"name": "Team"}).id
        self.price = self.priced(1200)

    def priced(self, amount: int, currency: str = "eur", interval: Any = "month") -> str:
        params: Any = {"product": self.product, "currency": currency, "unit_amount": amount}
        return self.api.v1.prices.create(params | {"recurring": {"interval": interval}}).id

    def opens(self, price: str = "", quantity: int = 3, **more: Any) -> Made:
        params: Any = {
            "mode": "subscription",
            "line_items": [{"price": price or self.price, "quantity": quantity}],
            "success_url": SUCCESS,
            "cancel_url": PLANS,
            "customer_email": "ada@acme.example",
        }
        chosen = {name: value for name, value in {**params, **more}.items() if value is not None}
        return self.api.v1.checkout.sessions.create(chosen)  # type: ignore[arg-type]  # as the tests have it

    def again(self, session: Made) -> Made:
        return self.api.v1.checkout.sessions.retrieve(session.id)

    def code(self, word: str, **coupon: Any) -> None:
        params: Any = {"duration": "once", **coupon}
        made = self.api.v1.coupons.create(params).id
        self.api.v1.promotion_codes.create({"promotion": {"type": "coupon", "coupon": made}, "code": word})


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Control]:
    """One of their own: its clock is moved."""
    with running() as control:
        yield control


@pytest.fixture
def counter(api: stripe.StripeClient) -> Counter:
    return Counter(api)


def page_of(session: Made) -> Page:
    assert session.url
    return visit(session.url)


def titles(page: Page) -> list[str]:
    """The test ids of what can be chosen to pay by."""
    return page.buttons[-1].form.options["payment_method"]


def test_the_page_says_what_is_bought_and_what_is_due(counter: Counter) -> None:
    page = page_of(counter.opens())

    assert (page.status, page.focused, page.title) == (200, [], "Subscribe to Team · sandbox")
    for said in ("Subscribe to Team", "3 seats at €12.00 per month", "Due today €36.00", "ada@acme.example"):
        assert said in page.text
    assert "Then €36.00 per month, until canceled." in page.text
    assert page.links["Cancel and go back to app.example.com"] == PLANS
    assert page.offers("Pay €36.00")


def test_who_has_paid_is_led_on_to_the_app(counter: Counter, api: stripe.StripeClient) -> None:
    session = counter.opens()

    left = page_of(session).press("Pay €36.00", payment_method="pm_card_visa")

    done, way_on = counter.again(session), SUCCESS.replace("{CHECKOUT_SESSION_ID}", session.id)
    assert (done.status, done.payment_status) == ("complete", "paid")
    assert [answer.status_code for answer in left.answer.history] == [303]
    assert left.refresh == left.links["Continue to app.example.com"] == way_on
    assert api.v1.subscriptions.retrieve(str(done.subscription)).status == "active"


def test_a_session_that_is_complete_says_so_and_leads_on(counter: Counter) -> None:
    session = counter.opens()
    before = page_of(session)
    before.press("Pay €36.00")

    again, pressed_twice = visit(before.url), before.press("Pay €36.00")

    for page in (again, pressed_twice):
        assert (page.status, page.refresh) == (200, None)
        assert "€36.00 is paid." in page.text
        assert session.id in page.links["Continue to app.example.com"]


def test_a_declined_card_is_told_of_and_another_one_pays(counter: Counter) -> None:
    session = counter.opens()

    declined = page_of(session).press("Pay €36.00", payment_method="pm_card_visa_chargeDeclined")
    status = counter.again(session).status
    declined.press("Pay €36.00", payment_method="pm_card_visa")

    assert (declined.status, declined.alerts, status) == (402, ["Your card was declined."], "open")
    assert (declined.focused, declined.title) == (["error"], "Problem: Subscribe to Team · sandbox")
    fieldsets = [given for tag, given in declined.tags if tag == "fieldset"]
    assert fieldsets == [{"aria-describedby": "error"}]
    assert declined.buttons[-1].form.values["payment_method"] == "pm_card_visa_chargeDeclined"
    assert counter.again(session).status == "complete"


def test_with_3d_secure_the_holder_is_asked_on_the_next_page(counter: Counter) -> None:
    session = counter.opens()

    asked = page_of(session).press("Pay €36.00", payment_method="pm_card_threeDSecureRequired")
    failed = asked.press("Fail the check")
    asked_again = failed.press("Pay €36.00", payment_method="pm_card_threeDSecureRequired")
    left = asked_again.press("Confirm that it is me")

    assert "Is it you?" in asked.text
    assert (failed.status, failed.alerts) == (402, ["The holder of the card was not authenticated."])
    assert left.refresh
    assert session.id in left.refresh
    assert counter.again(session).payment_status == "paid"


def test_nobody_is_asked_who_has_not_paid_by_such_a_card(counter: Counter) -> None:
    session = counter.opens()
    page = page_of(session)

    for path in ("/authentication", "/left"):
        assert visit(page.url + path).url == page.url


def test_a_bank_debit_completes_and_is_said_to_settle_later(sandbox: Control, counter: Counter) -> None:
    session = counter.opens()
    page = page_of(session)

    page.press("Pay €36.00", payment_method="pm_success_de")
    under_way = visit(page.url)
    sandbox.settle_payment(session.id)

    assert "Your bank was asked to pay €36.00." in under_way.text
    assert under_way.links["control page"] == "/"
    assert "€36.00 is paid." in visit(page.url).text


@pytest.mark.parametrize(
    ("currency", "banks"), [("eur", ["pm_success_de"]), ("usd", ["pm_usBankAccount_success"]), ("gbp", [])]
)
def test_a_bank_is_offered_where_the_session_takes_it(
    counter: Counter, currency: str, banks: list[str]
) -> None:
    page = page_of(counter.opens(counter.priced(900, currency)))

    cards = ["pm_card_visa", "pm_card_threeDSecureRequired", "pm_card_visa_chargeDeclined"]
    assert titles(page) == cards + banks


def test_a_trial_is_free_at_first_and_says_what_comes_then(counter: Counter, api: stripe.StripeClient) -> None:
    session = counter.opens(subscription_data={"trial_period_days": 14})
    page = page_of(session)

    page.press("Start trial")

    assert "Due today €0.00" in page.text
    assert "14 days free, then €36.00 per month, until canceled." in page.text
    assert api.v1.subscriptions.retrieve(str(counter.again(session).subscription)).status == "trialing"


@pytest.mark.parametrize(
    ("coupon", "trial", "said"),
    [
        ({"duration": "once"}, False, "Then €36.00 per month, until canceled."),
        ({"duration": "once"}, True, "then €36.00 per month, less 50% off once, until canceled."),
        ({"duration": "forever"}, False, "Then €36.00 per month, less 50% off, until canceled."),
        (
            {"duration": "repeating", "duration_in_months": 3},
            False,
            "Then €36.00 per month, less 50% off for 3 months from today, until canceled.",
        ),
    ],
    ids=["once", "once, after a trial", "forever", "for some months"],
)
def test_what_comes_then_is_less_only_what_is_still_taken_off(
    counter: Counter, coupon: dict[str, Any], trial: bool, said: str
) -> None:
    params: Any = {"percent_off": 50, **coupon}
    more: Any = {"subscription_data": {"trial_period_days": 14}} if trial else {}

    page = page_of(counter.opens(discounts=[{"coupon": counter.api.v1.coupons.create(params).id}], **more))

    assert said in page.text


def test_a_trial_until_a_date_names_it(sandbox: Control, counter: Counter) -> None:
    end = sandbox.now() + 10 * DAY

    page = page_of(counter.opens(subscription_data={"trial_end": end}))

    assert f"Free until {words.date(end)}, then €36.00 per month" in page.text


def test_a_card_that_fails_later_can_only_begin_a_trial(
    sandbox: Control, counter: Counter, api: stripe.StripeClient
) -> None:
    session = counter.opens(subscription_data={"trial_period_days": 14})
    fails = "pm_card_chargeCustomerFail"

    page_of(session).press("Start trial", payment_method=fails)
    sandbox.advance(15 * DAY)

    assert fails not in titles(page_of(counter.opens()))
    assert api.v1.subscriptions.retrieve(str(counter.again(session).subscription)).status == "past_due"


def test_a_trial_may_begin_with_nothing_to_pay_by_where_that_is_allowed(
    counter: Counter, api: stripe.StripeClient
) -> None:
    session = counter.opens(
        subscription_data={"trial_period_days": 14}, payment_method_collection="if_required"
    )

    page_of(session).press("Start trial")

    made = api.v1.subscriptions.retrieve(str(counter.again(session).subscription))
    assert (made.status, made.default_payment_method) == ("trialing", None)


def test_only_what_is_offered_can_be_chosen(counter: Counter) -> None:
    session = counter.opens()

    for wrong in ("", "pm_card_mastercard"):
        page = page_of(session).press("Pay €36.00", payment_method=wrong)
        assert (page.status, page.alerts) == (400, ["Choose one of the payment methods."])
    assert counter.again(session).status == "open"


def test_a_promotion_code_is_taken_off_and_can_be_taken_out(counter: Counter) -> None:
    counter.code("LAUNCH", percent_off=25)
    session = counter.opens(allow_promotion_codes=True)

    with_code = page_of(session).press("Apply", promotion_code="launch")
    total = counter.again(session).amount_total
    without = with_code.press("Take LAUNCH out")

    assert f"LAUNCH 25% off once {MINUS}€9.00" in with_code.text
    assert "Due today €27.00" in with_code.text
    assert with_code.offers("Pay €27.00")
    assert total == 2700
    assert without.offers("Pay €36.00")
    assert counter.again(session).amount_total == 3600


def test_what_a_code_takes_off_is_what_is_paid(counter: Counter, api: stripe.StripeClient) -> None:
    counter.code("LESS", amount_off=500, currency="eur")
    session = counter.opens(allow_promotion_codes=True)

    page_of(session).press("Apply", promotion_code="LESS").press("Pay €31.00")

    assert api.v1.invoices.retrieve(str(counter.again(session).invoice)).amount_paid == 3100


def test_an_invalid_code_is_said_to_be_that(counter: Counter) -> None:
    page = page_of(counter.opens(allow_promotion_codes=True)).press("Apply", promotion_code="NONE")

    fields = [given for tag, given in page.tags if tag == "input" and given["name"] == "promotion_code"]
    assert (page.status, page.alerts, page.focused) == (400, ["This code is invalid."], ["promotion_code"])
    assert fields[0]["aria-describedby"] == "code-error"
    assert fields[0]["value"] == "NONE"


def test_a_code_that_ended_meanwhile_is_refused_when_it_is_to_be_paid(
    counter: Counter, api: stripe.StripeClient
) -> None:
    counter.code("ENDS", percent_off=25)
    page = page_of(counter.opens(allow_promotion_codes=True)).press("Apply", promotion_code="ENDS")
    api.v1.promotion_codes.update(api.v1.promotion_codes.list({"code": "ENDS"}).data[0].id, {"active": False})

    refused = page.press("Pay €27.00")

    assert refused.alerts == ["This promotion code is not active: ENDS"]
    assert refused.press("Take ENDS out").press("Pay €36.00").refresh


def test_the_levers_do_what_the_page_does(sandbox: Control, counter: Counter) -> None:
    counter.code("LEVER", percent_off=25)
    session = counter.opens(allow_promotion_codes=True, customer_email=None)

    totals = [sandbox.enter_code(session.id, word)["amount_total"] for word in ("LEVER", None, "lever")]
    shown = page_of(session)
    done = sandbox.complete_checkout(session.id, email="bob@acme.example")

    assert totals == [2700, 3600, 2700]
    assert shown.offers("Pay €27.00")
    assert done["customer_details"]["email"] == "bob@acme.example"


def test_codes_are_asked_for_where_the_session_takes_them(counter: Counter) -> None:
    assert not page_of(counter.opens()).offers("Apply")


def test_the_coupon_of_a_session_is_shown_and_stays(sandbox: Control, counter: Counter) -> None:
    coupon = counter.api.v1.coupons.create(
        {"percent_off": 50, "duration": "repeating", "duration_in_months": 3, "name": "Friends"}
    ).id
    session = counter.opens(discounts=[{"coupon": coupon}])

    page = page_of(session)

    assert f"Friends 50% off for 3 months {MINUS}€18.00" in page.text
    with pytest.raises(ValueError, match="takes no promotion codes"):
        sandbox.enter_code(session.id, None)


def test_an_unknown_customer_gives_their_address(counter: Counter, api: stripe.StripeClient) -> None:
    session = counter.opens(customer_email=None)
    page = page_of(session)

    nothing = page.press("Pay €36.00", email=" ")
    wrong = page.press("Pay €36.00", email="bob@")
    wrong.press("Pay €36.00", email="bob@acme.example")

    assert (nothing.status, nothing.alerts) == (400, ["Enter your e-mail address."])
    assert (wrong.status, wrong.alerts, wrong.focused) == (400, ["Invalid email address: bob@"], ["email"])
    done = counter.again(session)
    assert done.customer_details
    assert done.customer_details.email == "bob@acme.example"
    assert api.v1.customers.retrieve(str(done.customer)).email == "bob@acme.example"


def test_an_address_is_kept_while_the_holder_of_a_card_is_asked(counter: Counter) -> None:
    session = counter.opens(customer_email=None)

    asked = page_of(session).press(
        "Pay €36.00", email="bob@acme.example", payment_method="pm_card_threeDSecureRequired"
    )
    asked.press("Confirm that it is me")

    details = counter.again(session).customer_details
    assert details
    assert details.email == "bob@acme.example"


def test_a_known_customer_without_an_address_gives_theirs(counter: Counter, api: stripe.StripeClient) -> None:
    known, other = (api.v1.customers.create({"email": email}).id for email in ("ada@acme.example", ""))
    asked, not_asked = (page_of(counter.opens(customer=id, customer_email=None)) for id in (other, known))

    asked.press("Pay €36.00", email="bob@acme.example")

    assert "email" not in not_asked.buttons[-1].form.values
    assert api.v1.customers.retrieve(other).email == "bob@acme.example"


def test_an_expired_session_says_so_and_leads_back(
    sandbox: Control, counter: Counter, api: stripe.StripeClient
) -> None:
    by_time, by_hand = counter.opens(), counter.opens()
    open_page = page_of(by_hand)

    sandbox.advance(2 * DAY)
    pages = [page_of(by_time), open_page.press("Pay €36.00")]

    for page in pages:
        assert page.status == 410
        assert "Nothing was bought." in page.text
        assert page.links["Go to app.example.com"] == PLANS


def test_amounts_are_in_the_units_of_their_currency(counter: Counter) -> None:
    page = page_of(counter.opens(counter.priced(1500, "jpy"), quantity=1))

    assert "Due today ¥1,500" in page.text
    assert "seat" not in page.text


@pytest.mark.parametrize(
    ("amount", "currency", "said"),
    [
        (123456, "eur", "€1,234.56"),
        (5, "usd", "$0.05"),
        (-900, "gbp", f"{MINUS}£9.00"),
        (1500, "jpy", "¥1,500"),
        (1500, "krw", "KRW 1,500"),
        (1500, "kwd", "KWD 1.500"),
        (1500, "chf", "CHF 15.00"),
    ],
)
def test_money_is_said_as_it_is_written(amount: int, currency: str, said: str) -> None:
    assert words.money(amount, currency).replace("\N{NO-BREAK SPACE}", " ") == said


@pytest.mark.parametrize("mode", ["payment", "setup"])
def test_other_modes_have_a_page_too(counter: Counter, api: stripe.StripeClient, mode: Any) -> None:
    once = api.v1.prices.create({"product": counter.product, "currency": "eur", "unit_amount": 700}).id
    more: Any = {"line_items": [{"price": once}]} if mode == "payment" else {"line_items": None}
    session = counter.opens(mode=mode, currency="eur", **more)

    page = page_of(session)
    page.press("Pay €7.00" if mode == "payment" else "Save")

    assert ("Pay for Team" if mode == "payment" else "Save a payment method") in page.text
    assert counter.again(session).status == "complete"
