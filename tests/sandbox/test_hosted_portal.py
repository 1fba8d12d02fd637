"""The Portal as a customer sees it: what they have, what they may change, and where a task leads."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import stripe

from sandbox.pages import words
from sandbox.server import Control, running
from tests.sandbox.shop import DAY
from tests.sandbox.visitor import Page, visit

BACK = "https://app.example.com/settings/billing"
UPDATED = "https://app.example.com/settings/billing?billing=updated"
CARD_FAILS = "pm_card_chargeCustomerFail"


class Account:
    """Acme and its subscription to three seats of Team, in a Portal that offers everything."""

    def __init__(self, api: stripe.StripeClient) -> None:
        self.api = api
        self.team, self.plus = (api.v1.products.create({"name": name}).id for name in ("Team", "Plus"))
        self.monthly, self.yearly = self.priced(self.team, 1200), self.priced(self.team, 12000, "year")
        self.bigger = self.priced(self.plus, 4900)
        self.customer = api.v1.customers.create({"name": "Acme", "email": "ada@acme.example"}).id
        self.pays_by("pm_card_visa")
        self.features: Any = {
            "customer_update": {"enabled": True, "allowed_updates": ["name", "email"]},
            "invoice_history": {"enabled": True},
            "payment_method_update": {"enabled": True},
            "subscription_cancel": {"enabled": True},
            "subscription_update": {
                "enabled": True,
                "default_allowed_updates": ["price", "quantity"],
                "products": [
                    {
                        "product": self.team,
                        "prices": [self.monthly, self.yearly],
                        "adjustable_quantity": {"enabled": True, "minimum": 2, "maximum": 9},
                    },
                    {"product": self.plus, "prices": [self.bigger]},
                ],
            },
        }

    def priced(self, product: str, amount: int, interval: Any = "month", currency: str = "eur") -> str:
        params: Any = {"product": product, "currency": currency, "unit_amount": amount}
        return self.api.v1.prices.create(params | {"recurring": {"interval": interval}}).id

    def pays_by(self, card: str) -> None:
        method = self.api.v1.payment_methods.attach(card, {"customer": self.customer}).id
        self.api.v1.customers.update(self.customer, {"invoice_settings": {"default_payment_method": method}})

    def subscribes(self, **more: Any) -> str:
        items = [{"price": self.monthly, "quantity": 3}]
        params: Any = {"customer": self.customer, "items": items, **more}
        return self.api.v1.subscriptions.create(params).id

    def opens(self, task: str | None = None, after: Any = None, **details: Any) -> Page:
        configuration = self.api.v1.billing_portal.configurations.create({"features": self.features}).id
        flow: Any = {"type": task, **({task: details} if task and details else {})}
        if after:
            flow["after_completion"] = after
        params: Any = {"customer": self.customer, "configuration": configuration, "return_url": BACK}
        session = self.api.v1.billing_portal.sessions.create(params | ({"flow_data": flow} if task else {}))
        return visit(session.url)

    def now(self, subscription: str) -> dict[str, Any]:
        return self.api.v1.subscriptions.retrieve(subscription).to_dict()

    def item(self, subscription: str) -> dict[str, Any]:
        item: dict[str, Any] = self.now(subscription)["items"]["data"][0]
        return item

    def cards(self) -> list[str]:
        return [
            method.card.last4
            for method in self.api.v1.payment_methods.list({"customer": self.customer}).data
            if method.card
        ]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Control]:
    """One of their own: its clock is moved."""
    with running() as control:
        yield control


@pytest.fixture
def account(api: stripe.StripeClient) -> Account:
    return Account(api)


def test_the_overview_shows_what_the_customer_has(account: Account) -> None:
    made = account.now(account.subscribes())

    page = account.opens()

    renewal = words.date(made["items"]["data"][0]["current_period_end"])
    for said in (f"Team Active 3 seats, €36.00 per month Renews on {renewal}.", "Visa ending in 4242 pays"):
        assert said in page.text
    assert "ada@acme.example" in page.text
    assert "€36.00 paid" in page.text
    assert page.links["Return to app.example.com"] == BACK


def test_it_says_in_words_how_a_subscription_stands(sandbox: Control, account: Account) -> None:
    trial = account.subscribes(trial_period_days=14)
    until = words.date(account.now(trial)["trial_end"])
    on_trial = account.opens().text
    account.pays_by(CARD_FAILS)
    sandbox.advance(15 * DAY)
    past_due = account.opens().text
    account.api.v1.subscriptions.cancel(trial)

    assert f"Free trial 3 seats, €36.00 per month Free until {until}, then paid." in on_trial
    assert "Past due" in past_due
    assert "The latest payment failed." in past_due
    assert "There is no subscription." in account.opens().text


def test_what_is_taken_off_is_shown(account: Account) -> None:
    coupon = account.api.v1.coupons.create({"percent_off": 20, "duration": "forever"}).id
    account.subscribes(discounts=[{"coupon": coupon}])

    assert "€36.00 per month, less 20% off" in account.opens().text


def test_nobody_elses_things_are_there(account: Account, api: stripe.StripeClient) -> None:
    other = Account(api)
    subscription = other.subscribes()
    made = other.now(subscription)
    method = api.v1.payment_methods.list({"customer": other.customer}).data[0].id
    page = account.opens()

    for path in (
        f"/subscriptions/{subscription}/cancellation",
        f"/subscriptions/{subscription}/resumption",
        f"/subscriptions/{subscription}/plan/confirmation",
        f"/invoices/{made['latest_invoice']}/payment",
        f"/payment-methods/{method}",
    ):
        assert requests.post(page.url + path).status_code == 404
    assert "Visa ending in 4242 pays" in other.opens().text
    assert other.now(subscription) == made


def test_only_what_the_configuration_offers_is_offered(account: Account) -> None:
    id = account.subscribes()
    account.features = {"invoice_history": {"enabled": False}, "payment_method_update": {"enabled": False}}

    page = account.opens()

    assert (page.buttons, list(page.links)) == ([], ["Return to app.example.com"])
    assert "Invoices" not in page.text
    for path in (
        "/payment-method",
        "/details",
        f"/subscriptions/{id}/cancellation",
        f"/subscriptions/{id}/plan",
    ):
        refused = visit(page.url + path)
        assert (refused.status, refused.links["Go to app.example.com"]) == (403, BACK)
        assert requests.post(page.url + path.replace("plan", "plan/confirmation")).status_code == 403


def test_a_new_card_pays_from_now_on(account: Account, api: stripe.StripeClient) -> None:
    old = api.v1.payment_methods.list({"customer": account.customer}).data[0].id
    id = account.subscribes(default_payment_method=old)

    page = account.opens().follow("Add another").press("Save", payment_method="pm_card_mastercard")

    new = api.v1.payment_methods.list({"customer": account.customer}).data[0].id
    settings = api.v1.customers.retrieve(account.customer).invoice_settings
    assert settings
    assert settings.default_payment_method == account.now(id)["default_payment_method"] == new
    assert "Your payment method was saved." in page.text
    assert "Mastercard ending in 4444 pays" in page.text
    assert account.cards() == ["4444", "4242"]


def test_a_declined_card_is_not_kept(account: Account) -> None:
    form = account.opens().follow("Add another")

    page = form.press("Save", payment_method="pm_card_visa_chargeDeclined")

    assert (page.status, page.alerts, page.focused) == (402, ["Your card was declined."], ["error"])
    assert account.cards() == ["4242"]


def test_a_card_that_fails_later_fails_at_the_next_payment(sandbox: Control, account: Account) -> None:
    id = account.subscribes()
    account.opens().follow("Add another").press("Save", payment_method=CARD_FAILS)

    sandbox.advance(32 * DAY)

    assert account.now(id)["status"] == "past_due"


def test_an_earlier_card_can_pay_again_or_be_removed(account: Account) -> None:
    id = account.subscribes()
    added = account.opens().follow("Add another").press("Save", payment_method="pm_card_mastercard")

    back = added.press("Pay by this")
    removed = back.press("Remove")

    assert "Visa ending in 4242 pays" in back.text
    assert account.now(id)["default_payment_method"]
    assert "The payment method was removed." in removed.text
    assert account.cards() == ["4242"]


def test_what_alone_pays_cannot_be_removed(account: Account, api: stripe.StripeClient) -> None:
    account.subscribes()
    page = account.opens()
    method = api.v1.payment_methods.list({"customer": account.customer}).data[0].id

    refused = Page(requests.post(f"{page.url}/payment-methods/{method}", {"remove": ""}))

    assert not page.offers("Remove")
    assert (refused.status, refused.alerts) == (409, ["This pays everything. Add another one first."])
    assert account.cards() == ["4242"]


def test_an_open_invoice_is_paid_once_there_is_a_card_that_pays(sandbox: Control, account: Account) -> None:
    id = account.subscribes()
    account.pays_by(CARD_FAILS)
    sandbox.advance(32 * DAY)
    page = account.opens()

    in_vain = page.press("Pay")
    page.follow("Add another").press("Save", payment_method="pm_card_visa")
    paid = page.press("Pay")

    assert (in_vain.status, in_vain.alerts) == (402, ["Your card was declined."])
    assert "The invoice is paid." in paid.text
    assert not paid.offers("Pay")
    assert account.now(id)["status"] == "active"


def test_details_are_changed_as_far_as_that_is_allowed(account: Account, api: stripe.StripeClient) -> None:
    form = account.opens().follow("Change details")

    wrong = form.press("Save", name="Acme GmbH", email="ada@")
    page = wrong.press("Save", email="bob@acme.example")

    fields = {given["name"]: given for tag, given in wrong.tags if tag == "input"}
    assert (wrong.status, wrong.alerts, wrong.focused) == (400, ["Invalid email address: ada@"], ["email"])
    assert list(fields) == ["name", "email"]
    assert fields["email"]["aria-describedby"] == "email-error"
    assert fields["name"]["value"] == "Acme GmbH"
    assert "Your details were saved." in page.text
    changed = api.v1.customers.retrieve(account.customer)
    assert (changed.name, changed.email) == ("Acme GmbH", "bob@acme.example")


def test_details_that_are_not_allowed_stay(account: Account, api: stripe.StripeClient) -> None:
    account.features["customer_update"]["allowed_updates"] = ["name"]
    page = account.opens()

    requests.post(f"{page.url}/details", {"name": "", "email": "bob@acme.example"})

    customer = api.v1.customers.retrieve(account.customer)
    assert (customer.name, customer.email) == (None, "ada@acme.example")


def test_seats_are_changed_after_a_look_at_what_it_will_be(account: Account) -> None:
    id = account.subscribes()

    preview = account.opens().follow("Change plan or seats").press("Next: see what it will be", quantity="5")
    seen = account.item(id)["quantity"]
    done = preview.press("Confirm")

    assert "Team 5 seats at €12.00 per month €60.00 Due today €0.00" in preview.text
    assert "your next invoice is for this" in preview.text
    assert seen == 3
    assert "Your plan was changed." in done.text
    assert account.item(id)["quantity"] == 5


def test_what_a_new_interval_charges_is_foretold(account: Account, api: stripe.StripeClient) -> None:
    coupon = api.v1.coupons.create({"percent_off": 10, "duration": "forever"}).id
    id = account.subscribes(discounts=[{"coupon": coupon}])

    form = account.opens().follow("Change plan or seats")
    preview = form.press("Next: see what it will be", price=account.yearly, quantity="2")
    preview.press("Confirm")

    invoice = api.v1.invoices.retrieve(account.now(id)["latest_invoice"])
    assert "€240.00 Due today €216.00" in preview.text
    assert (invoice.amount_paid, account.item(id)["price"]["id"]) == (21600, account.yearly)


@pytest.mark.parametrize(("behavior", "due"), [("end_trial", 4900 * 3), ("continue_trial", 0)])
def test_a_change_ends_a_trial_where_the_configuration_says_so(
    account: Account, api: stripe.StripeClient, behavior: str, due: int
) -> None:
    id = account.subscribes(trial_period_days=14)
    account.features["subscription_update"]["trial_update_behavior"] = behavior

    form = account.opens().follow("Change plan or seats")
    preview = form.press("Next: see what it will be", price=account.bigger, quantity="3")
    preview.press("Confirm")

    assert f"Due today {words.money(due, 'eur')}" in preview.text
    assert account.now(id)["status"] == ("active" if due else "trialing")
    assert api.v1.invoices.retrieve(account.now(id)["latest_invoice"]).amount_paid == due


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"quantity": "1"}, "Team takes 2 to 9 seats."),
        ({"quantity": "10"}, "Team takes 2 to 9 seats."),
        ({"quantity": "3.5"}, "The number of seats is a whole number."),
        ({"quantity": "9" * 5000}, "The number of seats is a whole number."),
        ({"price": "BIGGER", "quantity": "4"}, "Plus takes 3 seats."),
        ({"price": "price_none"}, "Choose one of the plans."),
    ],
    ids=["too few", "too many", "half a seat", "far too many", "not adjustable", "not offered"],
)
def test_only_what_is_offered_can_be_asked_for(account: Account, wanted: dict[str, str], said: str) -> None:
    id = account.subscribes()
    form = account.opens().follow("Change plan or seats")
    wanted = {name: value.replace("BIGGER", account.bigger) for name, value in wanted.items()}

    page = form.press("Next: see what it will be", **wanted)
    posted = requests.post(page.url.split("?")[0], {"price": account.monthly, "quantity": "3"} | wanted)

    assert (page.status, page.alerts) == (400, [said])
    assert posted.status_code == 400
    assert account.item(id)["quantity"] == 3


def test_what_one_has_is_no_change_to_look_at(account: Account) -> None:
    account.subscribes()

    page = account.opens().follow("Change plan or seats").press("Next: see what it will be")

    said = "This is what you have. Choose another plan or number of seats."
    assert (page.status, page.alerts) == (400, [said])


def test_plans_are_offered_in_the_currency_of_the_subscription(account: Account) -> None:
    account.subscribes()
    dollars = account.priced(account.plus, 5500, currency="usd")
    account.features["subscription_update"]["products"][1]["prices"].append(dollars)

    form = account.opens().follow("Change plan or seats")

    assert form.buttons[0].form.options["price"] == [account.monthly, account.yearly, account.bigger]


@pytest.mark.parametrize("allowed", ["price", "quantity"])
def test_plans_or_seats_alone_may_be_offered(account: Account, allowed: str) -> None:
    account.subscribes()
    account.features["subscription_update"]["default_allowed_updates"] = [allowed]

    form = account.opens().follow("Change plan or seats").buttons[0].form

    offered = [account.monthly, account.yearly, account.bigger] if allowed == "price" else [account.monthly]
    assert form.options["price"] == offered
    assert ("quantity" in form.values) == (allowed == "quantity")


def test_canceling_waits_for_the_end_of_the_period_and_can_be_undone(account: Account) -> None:
    id = account.subscribes()
    ends = words.date(account.item(id)["current_period_end"])

    form = account.opens().follow("Cancel subscription")
    canceled = form.press("Cancel subscription")
    before = account.now(id)
    resumed = canceled.press("Don't cancel")

    assert f"It stays yours until {ends}, and ends then." in form.text
    assert f"Canceled 3 seats, €36.00 per month Ends on {ends}." in canceled.text
    assert (before["status"], before["cancel_at_period_end"]) == ("active", True)
    assert "Your subscription goes on." in resumed.text
    assert not account.now(id)["cancel_at_period_end"]


def test_what_was_to_end_at_a_date_can_go_on_too(sandbox: Control, account: Account) -> None:
    id = account.subscribes(cancel_at=sandbox.now() + 10 * DAY)

    account.opens().press("Don't cancel")

    assert account.now(id)["cancel_at"] is None


def test_canceling_at_once_and_why(account: Account) -> None:
    id = account.subscribes()
    account.features["subscription_cancel"] |= {
        "mode": "immediately",
        "cancellation_reason": {"enabled": True, "options": ["unused", "other"]},
    }

    form = account.opens().follow("Cancel subscription")
    wrong = form.press("Cancel subscription", feedback="too_complex", comment="Too <quiet> here")
    wrong.press("Cancel subscription", feedback="unused", comment="Too <quiet> here")

    ended = account.now(id)
    assert "It ends at once." in form.text
    assert (wrong.status, wrong.alerts) == (400, ["Choose one of the reasons."])
    assert form.buttons[0].form.options["feedback"] == ["unused", "other"]
    assert ended["status"] == "canceled"
    assert ended["cancellation_details"] == {
        "comment": "Too <quiet> here",
        "feedback": "unused",
        "reason": "cancellation_requested",
    }


def test_why_is_asked_only_where_that_is_configured(account: Account) -> None:
    id = account.subscribes()
    page = account.opens()
    form = page.follow("Cancel subscription")

    requests.post(f"{page.url}/subscriptions/{id}/cancellation", {"feedback": "unused"})

    assert "feedback" not in form.buttons[0].form.options
    assert account.now(id)["cancellation_details"]["feedback"] is None


def test_what_is_over_cannot_be_changed(account: Account) -> None:
    id = account.subscribes()
    form = account.opens().follow("Cancel subscription")
    account.api.v1.subscriptions.cancel(id)

    page = form.press("Cancel subscription")

    assert (page.status, page.links["Go to app.example.com"]) == (409, BACK)


def test_a_change_is_told_like_any_other(account: Account) -> None:
    account.subscribes()
    form = account.opens().follow("Cancel subscription")
    before = [event.id for event in account.api.v1.events.list({"limit": 1}).data]

    form.press("Cancel subscription")

    [event, last_before] = account.api.v1.events.list({"limit": 2}).data
    assert event.type == "customer.subscription.updated"
    assert event.data.to_dict()["previous_attributes"]["cancel_at_period_end"] is False
    assert [last_before.id] == before


FLOWS: list[tuple[str, str, dict[str, str]]] = [
    ("payment_method_update", "Save", {}),
    ("customer_update", "Save", {"name": "Acme GmbH"}),
    ("subscription_cancel", "Cancel subscription", {}),
    ("subscription_update", "Next: see what it will be", {"quantity": "4"}),
    ("subscription_update_confirm", "Confirm", {}),
]


def opened_for(account: Account, task: str, after: Any = None) -> Page:
    details: Any = {}
    if task.startswith("subscription"):
        details["subscription"] = id = account.subscribes()
    if task == "subscription_update_confirm":
        details["items"] = [{"id": account.item(id)["id"], "price": account.bigger, "quantity": 7}]
    return account.opens(task, after, **details)


@pytest.mark.parametrize(("task", "button", "typed"), FLOWS, ids=[flow[0] for flow in FLOWS])
def test_a_task_opens_straight_and_leads_back_to_the_app(
    account: Account, task: str, button: str, typed: dict[str, str]
) -> None:
    page = opened_for(account, task, {"type": "redirect", "redirect": {"return_url": UPDATED}})

    left = page.press(button, **typed)
    left = left.press("Confirm") if left.offers("Confirm") else left

    assert list(page.links) == ["Return to app.example.com"]
    assert left.refresh == left.links["Continue to app.example.com"] == UPDATED
    assert left.answer.history[-1].status_code == 303


@pytest.mark.parametrize(
    ("message", "said"), [({"custom_message": "See you."}, "See you."), (None, "Your billing was updated.")]
)
def test_a_task_may_end_with_a_confirmation(account: Account, message: Any, said: str) -> None:
    after: Any = {"type": "hosted_confirmation"} | ({"hosted_confirmation": message} if message else {})
    page = opened_for(account, "payment_method_update", after)

    done = page.press("Save")

    again = visit(page.url.replace("/payment-method", ""))
    for each in (done, again):
        assert said in each.text
        assert each.links == {"Return to app.example.com": BACK}


def test_a_task_leads_to_the_overview_otherwise(account: Account) -> None:
    page = opened_for(account, "subscription_cancel")

    done = page.press("Cancel subscription")

    assert "Your subscription was canceled." in done.text
    assert "Manage your billing" in visit(page.url.split("/subscriptions")[0]).text


def test_a_change_to_confirm_is_the_one_it_was_opened_for(account: Account) -> None:
    page = opened_for(account, "subscription_update_confirm")

    done = page.press("Confirm")

    assert "Plus 7 seats at €49.00 per month €343.00" in page.text
    assert not page.offers("Choose again")
    assert "Plus Active 7 seats, €343.00 per month" in done.text


def test_what_is_confirmed_twice_leads_on_both_times(account: Account) -> None:
    page = opened_for(
        account, "subscription_update_confirm", {"type": "redirect", "redirect": {"return_url": UPDATED}}
    )

    first, second = page.press("Confirm"), page.press("Confirm")

    assert first.refresh == second.refresh == visit(page.url).refresh == UPDATED


@pytest.mark.parametrize("task", [None, "subscription_update_confirm"], ids=["overview", "task"])
def test_what_is_confirmed_twice_is_no_error_in_the_overview(account: Account, task: str | None) -> None:
    if task:
        preview = opened_for(account, task)
    else:
        account.subscribes()
        form = account.opens().follow("Change plan or seats")
        preview = form.press("Next: see what it will be", quantity="5")

    first, second = preview.press("Confirm"), preview.press("Confirm")

    assert first.status == second.status == 200
    assert "Your plan was changed." in first.text
    assert first.text == second.text


def test_a_task_that_fails_stays_open(account: Account) -> None:
    page = opened_for(
        account, "payment_method_update", {"type": "redirect", "redirect": {"return_url": UPDATED}}
    )

    declined = page.press("Save", payment_method="pm_card_visa_chargeDeclined")

    assert declined.status == 402
    assert visit(page.url.replace("/payment-method", "/left")).url == page.url
    assert declined.press("Save", payment_method="pm_card_visa").refresh == UPDATED


@pytest.mark.parametrize("redirect", [{}, {"redirect": {"return_url": "javascript:alert(1)"}}])
def test_where_a_task_leads_is_an_address(account: Account, redirect: Any) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        account.opens("payment_method_update", {"type": "redirect", **redirect})

    assert str(refused.value.param).startswith("flow_data[after_completion][redirect]")
