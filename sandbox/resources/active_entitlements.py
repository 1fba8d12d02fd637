"""/v1/entitlements/active_entitlements: what a customer may use now. `entitlements` says how that came."""

from stripe.params.entitlements import ActiveEntitlementListParams, ActiveEntitlementRetrieveParams

from sandbox.entitlements import HOLDING, KIND, holding_of
from sandbox.errors import no_such
from sandbox.resources import Call, Operation, customers, page
from sandbox.store import Json


def list_active(call: Call) -> Json:
    customer = customers.living(call.store, call.params["customer"], param="customer")
    active = holding_of(call.store, customer["id"])["active"]
    return page(active, call.params, "/v1/entitlements/active_entitlements")


def retrieve(call: Call, id: str) -> Json:
    everyones = (one for holding in call.store.collection(HOLDING).values() for one in holding["active"])
    found: Json | None = next((one for one in everyones if one["id"] == id), None)
    if found is None:
        raise no_such(KIND.split(".")[-1], id)
    return found


OPERATIONS = [
    Operation("GET", "/v1/entitlements/active_entitlements", ActiveEntitlementListParams, list_active),
    Operation("GET", "/v1/entitlements/active_entitlements/<id>", ActiveEntitlementRetrieveParams, retrieve),
]
