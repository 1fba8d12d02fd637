"""/v1/invoices: what a subscription costs, to look at and to act upon. They come from subscriptions alone."""

from stripe.params import (
    InvoiceFinalizeInvoiceParams,
    InvoiceListParams,
    InvoiceMarkUncollectibleParams,
    InvoicePayParams,
    InvoiceRetrieveParams,
    InvoiceVoidInvoiceParams,
)

from sandbox import bills, changes
from sandbox.errors import Refusal
from sandbox.resources import Call, Operation, listed, pick
from sandbox.store import Json

KIND = bills.KIND


def retrieve(call: Call, id: str) -> Json:
    return call.store.find(KIND, id)


def list_invoices(call: Call) -> Json:
    subscription = call.params.pop("subscription", None)
    among = [
        invoice
        for invoice in call.store.collection(KIND).values()
        if subscription in (None, invoice["parent"]["subscription_details"]["subscription"])
    ]
    return listed(call, KIND, "/v1/invoices", "collection_method", "customer", "status", among=among)


def finalize(call: Call, id: str) -> Json:
    pick(call.params)
    invoice = call.store.find(KIND, id)
    if invoice["status"] != "draft":
        raise Refusal("This invoice is already finalized, you can't re-finalize a non-draft invoice.")
    bills.finalize(call.store, invoice)
    return invoice


def pay(call: Call, id: str) -> Json:
    """With the payment method named, or the one an automatic charge would use."""
    given = pick(call.params, "off_session", "paid_out_of_band", "payment_method")
    invoice = call.store.find(KIND, id)
    if invoice["status"] == "paid":
        raise Refusal("Invoice is already paid")
    if invoice["status"] == "void":
        raise Refusal("This invoice can no longer be paid.", code="invoice_not_editable")
    if invoice["status"] == "draft":
        bills.finalize(call.store, invoice)
    method = bills.method_of(call.store, bills.subscription_of(call.store, invoice))
    if "payment_method" in given:
        method = call.store.find("payment_method", given["payment_method"], param="payment_method")
    if not (bills.pays(method) or given.get("paid_out_of_band") or invoice["total"] == 0):
        changes.happened(call.store, invoice, "payment_failed")
        raise bills.declined()
    bills.pay(call.store, invoice)
    return invoice


def void(call: Call, id: str) -> Json:
    invoice = call.store.find(KIND, id)
    if invoice["status"] not in ("open", "uncollectible"):
        raise Refusal("You can only pass in open invoices. This invoice isn't open.")
    bills.void(call.store, invoice)
    return invoice


def mark_uncollectible(call: Call, id: str) -> Json:
    invoice = call.store.find(KIND, id)
    if invoice["status"] != "open":
        raise Refusal("You can only pass in open invoices. This invoice isn't open.")
    bills.write_off(call.store, invoice)
    return invoice


OPERATIONS = [
    Operation("GET", "/v1/invoices", InvoiceListParams, list_invoices),
    Operation("GET", "/v1/invoices/<id>", InvoiceRetrieveParams, retrieve),
    Operation("POST", "/v1/invoices/<id>/finalize", InvoiceFinalizeInvoiceParams, finalize),
    Operation("POST", "/v1/invoices/<id>/pay", InvoicePayParams, pay),
    Operation("POST", "/v1/invoices/<id>/void", InvoiceVoidInvoiceParams, void),
    Operation(
        "POST", "/v1/invoices/<id>/mark_uncollectible", InvoiceMarkUncollectibleParams, mark_uncollectible
    ),
]
