"""What of Stripe's objects every operator may see. Pure.

Shown is what the machine needs: ids, states, amounts, times, Stripe's own words. Masked is what tells of a
person, what opens something, and what somebody wrote freely: by the name of the member that holds it, and,
where the name says nothing, by how it looks. A member that nobody has thought of is masked as soon as its value
has a blank, an @ or a letter that no word of Stripe's has. A country is shown wherever it stands.
"""

from __future__ import annotations

import re
from typing import Any

MASK = "•••"
DEEPEST = 30  # levels; what is further in is not shown

# All within is about a person, or is somebody's account.
PERSONAL = frozenset(
    {
        *("address", "shipping", "shipping_details", "billing_details", "customer_details", "customer_address"),
        *("customer_shipping", "collected_information", "individual", "owner", "dob", "custom_fields"),
        *("tax_ids", "customer_tax_ids", "account_tax_ids", "tax_id", "mandate_data", "mandate_options"),
        *("payment_method_details", "source", "sources", "bank_account", "us_bank_account", "sepa_debit"),
        *("bacs_debit", "au_becs_debit", "link", "paypal", "custom_text", "evidence", "verification"),
    }
)
# Opens something, or finds a person or a card again.
KEYS = frozenset(
    {
        *("city", "line1", "line2", "postal_code", "town", "phone", "email", "name", "username", "nickname"),
        *("ip", "ip_address", "client_ip", "user_agent", "device", "client_reference_id", "receipt_number"),
        *("last4", "dynamic_last4", "iban_last4", "fingerprint", "exp_month", "exp_year", "iin", "number"),
        *("account_number", "routing_number", "iban", "bic", "sort_code", "bank_code", "branch_code", "cvc"),
        *("authorization_code", "network_transaction_id", "reference", "statement_descriptor", "value"),
        *("description", "footer", "memo", "subject", "title", "body", "message", "comment", "feedback"),
    }
)
ENDINGS = ("_email", "_name", "_phone", "_address", "_ip", "_secret", "secret", "_url", "url", "_pdf", "_token")
PUBLIC = {"country", "object"}
# Sold to everybody: what these are called is no secret.
SOLD = frozenset({"product", "price", "plan", "coupon", "promotion_code", "tax_rate", "entitlements.feature"})
SOLD_SHOWS = frozenset({"name", "description", "nickname", "unit_label"})
OURS = frozenset({"tenant_id", "billing_intent"})  # what we write into metadata
WORD = re.compile(r"[A-Za-z0-9_.:/+-]{0,255}")


def masked(value: Any) -> Any:
    """The same, with MASK in place of what is nobody's business."""
    return _masked(value, "", {}, DEEPEST)


def _masked(value: Any, key: str, within: dict[str, Any], deeper: int) -> Any:
    if isinstance(value, dict | list) and not deeper:
        return MASK
    if isinstance(value, list):
        return [_masked(one, key, within, deeper - 1) for one in value]
    if isinstance(value, dict):
        if key in PERSONAL:
            return _all_masked(value, deeper - 1)
        if key == "metadata":
            return {name: one if name in OURS else _hidden(one) for name, one in value.items()}
        return {name: _masked(one, name, value, deeper - 1) for name, one in value.items()}
    if value is None or isinstance(value, bool) or key in PUBLIC:
        return value
    is_sold = key in SOLD_SHOWS and within.get("object") in SOLD
    if is_sold or (key == "number" and within.get("object") == "invoice"):
        return value
    if key in PERSONAL or key in KEYS or key.endswith(ENDINGS):
        return _hidden(value)
    return value if isinstance(value, int | float) or WORD.fullmatch(value) else MASK


def _all_masked(value: Any, deeper: int) -> Any:
    """Everything but countries, and whether there is anything at all."""
    if not deeper:
        return MASK
    if isinstance(value, dict):
        return {name: one if name in PUBLIC else _all_masked(one, deeper - 1) for name, one in value.items()}
    if isinstance(value, list):
        return [_all_masked(one, deeper - 1) for one in value]
    return _hidden(value)


def _hidden(value: Any) -> Any:
    return value if value is None or value in ("", [], {}) or isinstance(value, bool) else MASK
