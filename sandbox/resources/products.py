"""/v1/products: what is sold. Its prices are `prices`."""

from stripe.params import (
    ProductCreateParams,
    ProductDeleteParams,
    ProductListParams,
    ProductRetrieveParams,
    ProductUpdateParams,
)

from sandbox import changes
from sandbox.errors import Refusal
from sandbox.resources import Call, Operation, listed, merged_metadata, new_id, pick
from sandbox.store import Json, Store

KIND = "product"

KEPT = [
    *("active", "description", "images", "marketing_features", "metadata", "name", "shippable"),
    *("statement_descriptor", "tax_code", "unit_label", "url"),
]


def create(call: Call) -> Json:
    given = pick(call.params, "id", "type", *KEPT)
    now = call.store.now()
    if given.get("id") in call.store.collection(KIND):
        raise Refusal("Product already exists.", code="resource_already_exists", param="id")
    product: Json = {
        "id": new_id("prod"),
        "object": KIND,
        "active": True,
        "created": now,
        "default_price": None,
        "description": None,
        "images": [],
        "livemode": False,
        "marketing_features": [],
        "metadata": {},
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": None,
        "tax_code": None,
        "type": "service",
        "unit_label": None,
        "updated": now,
        "url": None,
    }
    return changes.created(call.store, product | given)


def retrieve(call: Call, id: str) -> Json:
    return call.store.find(KIND, id)


def update(call: Call, id: str) -> Json:
    product = call.store.find(KIND, id)
    given = pick(call.params, "default_price", *KEPT)
    if "metadata" in given:
        given["metadata"] = merged_metadata(product["metadata"], given["metadata"])
    if "default_price" in given:
        check_price(call.store, id, given["default_price"])
    return changes.updated(call.store, product, **given, updated=call.store.now())


def check_price(store: Store, id: str, price: str) -> None:
    if store.find("price", price, param="default_price")["product"] != id:
        raise Refusal(f"The price {price} does not belong to this product.", param="default_price")


def delete(call: Call, id: str) -> Json:
    product = call.store.find(KIND, id)
    if any(price["product"] == id for price in call.store.collection("price").values()):
        raise Refusal("This product cannot be deleted because it has one or more user-created prices.")
    del call.store.collection(KIND)[id]
    changes.happened(call.store, product, "deleted")
    return {"id": id, "object": KIND, "deleted": True}


def list_products(call: Call) -> Json:
    ids = call.params.pop("ids", None)
    products = call.store.collection(KIND).values()
    among = [product for product in products if ids is None or product["id"] in ids]
    return listed(call, KIND, "/v1/products", "active", "shippable", "type", "url", among=among)


OPERATIONS = [
    Operation("POST", "/v1/products", ProductCreateParams, create),
    Operation("GET", "/v1/products", ProductListParams, list_products),
    Operation("GET", "/v1/products/<id>", ProductRetrieveParams, retrieve),
    Operation("POST", "/v1/products/<id>", ProductUpdateParams, update),
    Operation("DELETE", "/v1/products/<id>", ProductDeleteParams, delete),
]
