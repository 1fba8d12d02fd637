"""/c/pay: Checkout, where somebody sees what they are about to buy, and pays or goes back.

The session stays open until a payment method is good, and its page then says what became of it.
"""

from typing import Any

from flask import Blueprint, render_template, request

from sandbox.errors import Refusal
from sandbox.pages import methods
from sandbox.pages.methods import Choice
from sandbox.pages.visits import Answer, Gone, no_page, see, visit
from sandbox.resources import checkout, payment_methods
from sandbox.store import Json, Store

routes = Blueprint("checkout", __name__, url_prefix="/c/pay/<id>")


@routes.get("")
@visit
def show(store: Store, id: str) -> Answer:
    session = session_of(store, id)
    if session["status"] == "complete":
        return render_template("complete.html", session=session, order=order_of(store, session), way_on=way_on)
    return form(store, session)


@routes.post("")
@visit
def pay(store: Store, id: str) -> Answer:
    session = session_of(store, id)
    if session["status"] == "complete":  # pressed twice, or in two windows
        return see("checkout.show", id=id)
    try:
        method = methods.chosen(choices(session), request.form.get("payment_method"))
        email = request.form.get("email", "").strip()
        if not (email or address_of(store, session)):
            raise Refusal("Enter your e-mail address.", param="email")
        checkout.complete(store, id, method or None, email=email or None)
    except Refusal as refusal:
        return form(store, session, refusal)
    return see("checkout.left" if session["status"] == "complete" else "checkout.ask", id=id)


@routes.post("/code")
@visit
def enter_code(store: Store, id: str) -> Answer:
    session = session_of(store, id)
    word = None if "remove" in request.form else request.form.get("promotion_code", "").strip()
    try:
        checkout.enter_code(store, id, word)
    except Refusal as refusal:
        return form(store, session, Refusal(str(refusal), param="promotion_code"))
    return see("checkout.show", id=id)


@routes.get("/authentication")
@visit
def ask(store: Store, id: str) -> Answer:
    session = session_of(store, id)
    if session["status"] == "complete" or not order_of(store, session)["authenticating"]:
        return see("checkout.show", id=id)
    return render_template("authentication.html", session=session)


@routes.post("/authentication")
@visit
def answer(store: Store, id: str) -> Answer:
    session = session_of(store, id)
    if session["status"] == "complete" or not order_of(store, session)["authenticating"]:
        return see("checkout.show", id=id)
    try:
        checkout.authenticate(store, id, succeed="confirm" in request.form)
    except Refusal as refusal:
        return form(store, session, refusal)
    if session["status"] == "complete":
        return see("checkout.left", id=id)
    return form(store, session, Refusal("The holder of the card was not authenticated.", status=402))


@routes.get("/left")
@visit
def left(store: Store, id: str) -> Answer:
    """On to the app, once it is paid."""
    session = session_of(store, id)
    if session["status"] != "complete":
        return see("checkout.show", id=id)
    return render_template("left.html", url=way_on(session))


def session_of(store: Store, id: str) -> Json:
    session = store.collection(checkout.KIND).get(id)
    if session is None:
        raise no_page()
    if session["status"] == "expired":
        raise Gone(
            "This page has expired",
            "Nothing was bought. Go back to where you came from and start again.",
            410,
            session["cancel_url"],
        )
    return session


def order_of(store: Store, session: Json) -> Json:
    return store.find(checkout.ORDER, checkout.order_id(session))


def way_on(session: Json) -> str:
    url: str = session["success_url"]
    return url.replace("{CHECKOUT_SESSION_ID}", session["id"])


def form(store: Store, session: Json, refusal: Refusal | None = None) -> Answer:
    order = order_of(store, session)
    free, reduced = trial(store, order["subscription_data"]), reductions(store, session)
    page = render_template(
        "checkout.html",
        session=session,
        lines=order["line_items"],
        trial=free,
        each_period=sum(line["amount_subtotal"] for line in order["line_items"]),
        reductions=reduced,
        later=[each["coupon"] for each in reduced if free or each["coupon"]["duration"] != "once"],
        email=address_of(store, session),
        choices=choices(session),
        given=request.form,
        error=str(refusal or ""),
        place=refusal.body["error"].get("param") if refusal else None,
    )
    return page, refusal.status if refusal else 200


def choices(session: Json) -> list[Choice]:
    """A card that never pays can only begin what is free at first."""
    is_free, types = not session["amount_total"], session["payment_method_types"]
    needless = is_free and session["payment_method_collection"] == "if_required"
    cards = [methods.PAYS, methods.ASKS, *([methods.FAILS] if is_free else []), methods.IS_DECLINED]
    return [
        *([methods.NOTHING] if needless else []),
        *(cards if "card" in types else []),
        *(bank for bank in methods.BANKS if payment_methods.BANK_ACCOUNTS[bank.id][0] in types),
    ]


def address_of(store: Store, session: Json) -> str | None:
    """The e-mail address where it is known, and then not asked for."""
    customer = store.collection("customer").get(session["customer"], {})
    email: str | None = session["customer_email"] or customer.get("email")
    return email


def trial(store: Store, data: Json) -> dict[str, Any]:
    """How long nothing is to be paid: in days where that was asked for, or until a date."""
    return {name: data[f"trial_{name}"] for name in ("period_days", "end") if f"trial_{name}" in data}


def reductions(store: Store, session: Json) -> list[Json]:
    """The coupons, each with the word it came by."""
    found = []
    for entry in session["discounts"]:
        code = store.collection("promotion_code").get(entry["promotion_code"])
        coupon = store.find("coupon", code["promotion"]["coupon"] if code else entry["coupon"])
        found.append({"coupon": coupon, "code": code and code["code"]})
    return found
