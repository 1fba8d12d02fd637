"""/v1/customers. A deleted customer stays as a tombstone that can be retrieved and nothing else."""

import secrets

from stripe.params import (
    CustomerCreateParams,
    CustomerDeleteParams,
    CustomerListParams,
    CustomerRetrieveParams,
    CustomerSearchParams,
    CustomerUpdateParams,
)

from sandbox import bills, changes, life, search
from sandbox.errors import Refusal, no_such
from sandbox.resources import Call, Operation, listed, merged, merged_metadata, new_id, page, pick
from sandbox.store import Json, Store
from sandbox.wire import Params

KIND = "customer"

ADDRESS = dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))

KEPT = [
    *("address", "balance", "business_name", "description", "email", "individual_name", "invoice_prefix"),
    *("invoice_settings", "metadata", "name", "next_invoice_sequence", "phone", "preferred_locales"),
    *("shipping", "tax_exempt"),
]


def create(call: Call) -> Json:
    customer: Json = {
        "id": new_id("cus"),
        "object": KIND,
        "address": None,
        "balance": 0,
        "created": call.store.now(),
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": secrets.token_hex(4).upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }
    return changes.created(call.store, customer | given(call, customer))


def retrieve(call: Call, id: str) -> Json:
    return call.store.find(KIND, id)


def update(call: Call, id: str) -> Json:
    customer = living(call.store, id)
    return changes.updated(call.store, customer, **given(call, customer))


def delete(call: Call, id: str) -> Json:
    """Its subscriptions end with it."""
    customer = living(call.store, id)
    for subscription in call.store.collection("subscription").values():
        if subscription["customer"] == id and subscription["status"] not in bills.ENDED:
            life.end(call.store, subscription)
    changes.happened(call.store, customer, "deleted")
    return call.store.insert({"id": id, "object": KIND, "deleted": True})


def list_customers(call: Call) -> Json:
    among = [customer for customer in call.store.collection(KIND).values() if not customer.get("deleted")]
    return listed(call, KIND, "/v1/customers", "email", among=among)


def search_customers(call: Call) -> Json:
    """Found at once, which at Stripe takes up to a minute."""
    asked = pick(call.params, "limit", "page", "query")
    wanted = search.clauses(asked["query"])
    customers = call.store.collection(KIND).values()
    found = [one for one in customers if not one.get("deleted") and search.matches(one, wanted)]
    cursor = {"starting_after": asked["page"]} if "page" in asked else {}
    shown = page(found, asked | cursor, "/v1/customers/search")
    next_page = shown["data"][-1]["id"] if shown["has_more"] else None
    return shown | {"object": "search_result", "next_page": next_page}


def living(store: Store, id: str, *, param: str = "id") -> Json:
    customer = store.find(KIND, id, param=param)
    if customer.get("deleted"):
        raise no_such(KIND, id, param=param)
    return customer


def check_method(store: Store, customer: str, id: str | None, param: str) -> None:
    """Only what is attached to a customer can be its default."""
    if id is not None and store.find("payment_method", id, param=param)["customer"] != customer:
        raise Refusal(
            f"The customer does not have a payment method with the ID {id}. The payment method must be"
            " attached to the customer.",
            code="resource_missing",
            param=param,
        )


def check_email(email: str | None) -> None:
    if email and "@" not in email.strip("@"):
        raise Refusal(f"Invalid email address: {email}", code="email_invalid", param="email")


def given(call: Call, customer: Json) -> Params:
    """The parameters as they change a customer."""
    given = pick(call.params, *KEPT)
    check_email(given.get("email"))
    if given.get("address"):
        given["address"] = merged(customer["address"] or ADDRESS, given["address"])
    if given.get("shipping"):
        given["shipping"] = {"phone": None} | given["shipping"]
        given["shipping"]["address"] = ADDRESS | given["shipping"]["address"]
    if "invoice_settings" in given:
        method = given["invoice_settings"].get("default_payment_method")
        check_method(call.store, customer["id"], method, "invoice_settings[default_payment_method]")
        given["invoice_settings"] = merged(customer["invoice_settings"], given["invoice_settings"])
    if "metadata" in given:
        given["metadata"] = merged_metadata(customer["metadata"], given["metadata"])
    if "tax_exempt" in given:
        given["tax_exempt"] = given["tax_exempt"] or "none"
    return given


OPERATIONS = [
    Operation("POST", "/v1/customers", CustomerCreateParams, create, empty_unsets=True),
    Operation("GET", "/v1/customers", CustomerListParams, list_customers),
    Operation("GET", "/v1/customers/search", CustomerSearchParams, search_customers),
    Operation("GET", "/v1/customers/<id>", CustomerRetrieveParams, retrieve),
    Operation("POST", "/v1/customers/<id>", CustomerUpdateParams, update, empty_unsets=True),
    Operation("DELETE", "/v1/customers/<id>", CustomerDeleteParams, delete),
]
