"""/p/session: the Customer Portal, where a customer looks after what they subscribed to.

What is offered is what the session's configuration offers. A session that was opened for one task begins
there, and afterwards leads where `after_completion` says. Who may come in is said by `guests`.
"""

from flask import Blueprint, render_template, request

from sandbox import bills
from sandbox.errors import Refusal
from sandbox.pages import methods, plans, words
from sandbox.pages.guests import Guest, guest
from sandbox.pages.visits import Answer, call, see
from sandbox.resources import customers, invoices, payment_methods, subscriptions
from sandbox.store import Json

DETAILS = {"name": "Name", "email": "E-mail", "phone": "Phone"}

# what a page says after it was left for the overview
TOLD = {
    "canceled": "Your subscription was canceled.",
    "changed": "Your plan was changed.",
    "details": "Your details were saved.",
    "method": "Your payment method was saved. It pays from now on.",
    "paid": "The invoice is paid.",
    "removed": "The payment method was removed.",
    "resumed": "Your subscription goes on.",
}

routes = Blueprint("portal", __name__, url_prefix="/p/session/<token>")


@routes.get("")
@guest
def overview(guest: Guest) -> Answer:
    task = guest.task
    if task and task["type"] in TASKS and not guest.customer.get("deleted"):
        view = TASKS[task["type"]]
        subscription = (task.get(task["type"]) or {}).get("subscription")
        return see(view, token=guest.token, **({"id": subscription} if subscription else {}))
    return home(guest)


def home(guest: Guest, refusal: Refusal | None = None) -> Answer:
    store, customer = guest.store, guest.customer
    issued = [
        invoice
        for invoice in store.collection(bills.KIND).values()
        if invoice["customer"] == customer["id"] and invoice["status"] != "draft"
    ]
    return guest.shown(
        "portal.html",
        refusal,
        subscriptions=[plans.described(store, one, guest.features) for one in guest.subscriptions()],
        methods=methods.of_customer(store, customer["id"]),
        paying=paying(guest),
        invoices=issued[::-1],
        details=details(guest),
        told=TOLD.get(request.args.get("told", "")),
    )


def paying(guest: Guest) -> set[str]:
    """The payment methods that pay by themselves."""
    default = guest.customer.get("invoice_settings", {}).get("default_payment_method")
    used = [one["default_payment_method"] or default for one in guest.subscriptions()]
    return {*used, *([] if used else [default])} - {None}


@routes.get("/payment-method")
@guest
def method_form(guest: Guest) -> Answer:
    guest.need("payment_method_update")
    return guest.shown("portal_method.html", choices=NEW_METHODS)


@routes.post("/payment-method")
@guest
def add_method(guest: Guest) -> Answer:
    guest.need("payment_method_update")
    try:
        test_id = methods.chosen(NEW_METHODS, request.form.get("payment_method"))
        method = payment_methods.attach(call(guest.store, {"customer": guest.customer["id"]}), test_id)
    except Refusal as refusal:
        return guest.shown("portal_method.html", refusal, choices=NEW_METHODS)
    pay_by(guest, method["id"])
    return guest.done("method", "payment_method_update")


@routes.post("/payment-methods/<id>")
@guest
def change_method(guest: Guest, id: str) -> Answer:
    guest.need("payment_method_update")
    guest.own(payment_methods.KIND, id)
    if "remove" in request.form and paying(guest) == {id}:
        return home(guest, Refusal("This pays everything. Add another one first.", status=409))
    if "remove" in request.form:
        payment_methods.detach(call(guest.store), id)
        return guest.done("removed")
    pay_by(guest, id)
    return guest.done("method", "payment_method_update")


def pay_by(guest: Guest, method: str) -> None:
    """All that is to be paid from now on is paid by this."""
    settings = {"default_payment_method": method}
    customers.update(call(guest.store, {"invoice_settings": settings}), guest.customer["id"])
    for subscription in guest.subscriptions():
        subscriptions.update(call(guest.store, settings), subscription["id"])


@routes.get("/details")
@guest
def details_form(guest: Guest) -> Answer:
    guest.need("customer_update")
    return guest.shown("portal_details.html", details=details(guest), place=None)


@routes.post("/details")
@guest
def save_details(guest: Guest) -> Answer:
    guest.need("customer_update")
    typed = {name: request.form[name].strip() or None for name in details(guest) if name in request.form}
    try:
        customers.update(call(guest.store, typed), guest.customer["id"])
    except Refusal as refusal:
        place = refusal.body["error"].get("param")
        return guest.shown("portal_details.html", refusal, details=details(guest), place=place)
    return guest.done("details", "customer_update")


def details(guest: Guest) -> dict[str, str]:
    """What may be changed of those that are kept of customers here, by what it is called."""
    allowed = guest.features["customer_update"]["allowed_updates"] if guest.offered("customer_update") else []
    return {name: label for name, label in DETAILS.items() if name in allowed}


@routes.get("/subscriptions/<id>/plan")
@guest
def plan_form(guest: Guest, id: str) -> Answer:
    guest.need("subscription_update")
    return plan_page(guest, guest.subscription(id))


def plan_page(guest: Guest, subscription: Json, refusal: Refusal | None = None) -> Answer:
    [item, *_] = bills.items_of(guest.store, subscription)
    offers = plans.offers(guest.store, subscription, guest.features)
    return guest.shown(
        "portal_plan.html", refusal, subscription=subscription, item=item, offers=offers, asked=request.values
    )


@routes.route("/subscriptions/<id>/plan/confirmation", methods=["GET", "POST"])
@guest
def confirm_plan(guest: Guest, id: str) -> Answer:
    """What it will be, and then it is."""
    guest.need("subscription_update")
    subscription = guest.subscription(id)
    try:
        change = asked_for(guest, subscription)
    except Refusal as refusal:
        return plan_page(guest, subscription, refusal)
    if request.method == "GET":
        return guest.shown("portal_confirm.html", subscription=subscription, change=change)
    try:
        if not change.is_none:  # or it was confirmed before: pressed twice, or in two windows
            subscriptions.update(call(guest.store, change.params), id)
    except Refusal as refusal:
        return guest.shown("portal_confirm.html", refusal, subscription=subscription, change=change)
    return guest.done("changed", "subscription_update", "subscription_update_confirm")


def asked_for(guest: Guest, subscription: Json) -> plans.Change:
    """The change the session was opened to confirm, or one that was chosen."""
    confirm = (guest.task or {}).get("subscription_update_confirm") or {}
    if confirm.get("subscription") == subscription["id"]:
        return plans.change(guest.store, subscription, confirm["items"][0], guest.features)
    entry = plans.chosen(guest.store, subscription, request.values, guest.features)
    change = plans.change(guest.store, subscription, entry, guest.features)
    if change.is_none and request.method == "GET":
        raise Refusal("This is what you have. Choose another plan or number of seats.", param="price")
    return change


@routes.get("/subscriptions/<id>/cancellation")
@guest
def cancel_form(guest: Guest, id: str) -> Answer:
    guest.need("subscription_cancel")
    return cancel_page(guest, guest.subscription(id))


def cancel_page(guest: Guest, subscription: Json, refusal: Refusal | None = None) -> Answer:
    asks = guest.features["subscription_cancel"]["cancellation_reason"]
    return guest.shown(
        "portal_cancel.html",
        refusal,
        subscription=plans.described(guest.store, subscription, guest.features),
        at_once=guest.features["subscription_cancel"]["mode"] == "immediately",
        reasons={name: words.REASONS[name] for name in asks["options"]} if asks["enabled"] else {},
    )


@routes.post("/subscriptions/<id>/cancellation")
@guest
def cancel(guest: Guest, id: str) -> Answer:
    guest.need("subscription_cancel")
    subscription = guest.subscription(id)
    feature = guest.features["subscription_cancel"]
    typed = {name: request.form.get(name) for name in ("feedback", "comment")}
    why = {name: text for name, text in typed.items() if text and feature["cancellation_reason"]["enabled"]}
    if "feedback" in why and why["feedback"] not in feature["cancellation_reason"]["options"]:
        return cancel_page(guest, subscription, Refusal("Choose one of the reasons."))
    params: Json = {"cancellation_details": why} if why else {}
    if feature["mode"] == "immediately":
        subscriptions.cancel(call(guest.store, params), id)
    else:
        subscriptions.update(call(guest.store, params | {"cancel_at_period_end": True}), id)
    return guest.done("canceled", "subscription_cancel")


@routes.post("/subscriptions/<id>/resumption")
@guest
def resume(guest: Guest, id: str) -> Answer:
    guest.need("subscription_cancel")
    at_period_end = guest.subscription(id)["cancel_at_period_end"]
    params: Json = {"cancel_at_period_end": False} if at_period_end else {"cancel_at": None}
    subscriptions.update(call(guest.store, params), id)
    return guest.done("resumed")


@routes.post("/invoices/<id>/payment")
@guest
def pay_invoice(guest: Guest, id: str) -> Answer:
    """By the payment method that pays by itself, too."""
    guest.need("invoice_history")
    guest.own(bills.KIND, id)
    try:
        invoices.pay(call(guest.store), id)
    except Refusal as refusal:
        return home(guest, refusal)
    return guest.done("paid")


@routes.get("/left")
@guest
def left(guest: Guest) -> Answer:
    """Where a task that is done leads."""
    flow = guest.session["flow"]
    if not flow or guest.task:
        return see("portal.overview", token=guest.token)
    after = flow["after_completion"]
    if after["type"] == "redirect":
        return render_template("left.html", url=after["redirect"]["return_url"])
    message = (after["hosted_confirmation"] or {}).get("custom_message")
    return guest.shown("portal_done.html", message=message)


TASKS = {
    "customer_update": "portal.details_form",
    "payment_method_update": "portal.method_form",
    "subscription_cancel": "portal.cancel_form",
    "subscription_update": "portal.plan_form",
    "subscription_update_confirm": "portal.confirm_plan",
}

NEW_METHODS = [methods.PAYS, methods.ALSO_PAYS, methods.FAILS, methods.IS_DECLINED]
