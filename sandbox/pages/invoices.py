"""/i: an invoice, as its `hosted_invoice_url` shows it to whoever has that address, and as they may pay it."""

from flask import Blueprint, render_template, request

from sandbox import bills
from sandbox.errors import Refusal
from sandbox.pages import methods
from sandbox.pages.visits import Answer, call, no_page, see, visit
from sandbox.resources import checkout, invoices, payment_methods
from sandbox.store import Json, Store

routes = Blueprint("invoices", __name__, url_prefix="/i/<id>")

CHOICES = [methods.PAYS, methods.FAILS, methods.IS_DECLINED]

PAYABLE = ("open", "uncollectible")


@routes.get("")
@visit
def show(store: Store, id: str) -> Answer:
    return page(store, issued(store, id))


@routes.post("")
@visit
def pay(store: Store, id: str) -> Answer:
    """By a payment method that becomes the customer's, though not the one that pays by itself."""
    invoice = issued(store, id)
    try:
        test_id = methods.chosen(CHOICES, request.form.get("payment_method"))
        if invoice["status"] in PAYABLE:
            method = payment_methods.attach(call(store, {"customer": invoice["customer"]}), test_id)
            invoices.pay(call(store, {"payment_method": method["id"]}), id)
    except Refusal as refusal:
        return page(store, invoice, refusal)
    return see("invoices.show", id=id)


def issued(store: Store, id: str) -> Json:
    """A draft has no page yet."""
    invoice = store.collection(bills.KIND).get(id)
    if invoice is None or invoice["status"] == "draft":
        raise no_page()
    return invoice


def page(store: Store, invoice: Json, refusal: Refusal | None = None) -> Answer:
    is_settling = checkout.is_settling(store, invoice)
    shown = render_template(
        "invoice.html",
        invoice=invoice,
        names={product["id"]: product["name"] for product in store.collection("product").values()},
        off=sum(each["amount"] for each in invoice["total_discount_amounts"]),
        is_settling=is_settling,
        choices=CHOICES if invoice["status"] in PAYABLE and not is_settling else [],
        given=request.form,
        error=str(refusal or ""),
    )
    return shown, refusal.status if refusal else 200
