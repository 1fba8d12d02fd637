"""What of an event every operator may see. Pure.

Shown is only what is known to tell of no person and to open nothing: ids with a prefix of Stripe's, Stripe's
own words, amounts, moments and counts under the names we know, what is sold to everybody, and what we write
into metadata ourselves. All else is MASK, whatever it is: Stripe adds members whenever it likes. Of an event
that nothing is read of here, nothing but its envelope and what it is about is shown.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from billing import catalogue
from billing.events import USED, Json

MASK = "•••"
DEEPEST = 30  # levels; what is further in is not shown

ENVELOPE = frozenset({"id", "object", "type", "created", "api_version", "livemode", "pending_webhooks"})
ABOUT = frozenset({"id", "object", "created"})  # of an object that nothing is read of

OPENS = ("secret", "token", "url", "pdf", "code", "link", "idempotency")  # in a name: what it holds opens it
ID = re.compile(r"[a-z][a-z_]{1,30}_[A-Za-z0-9]{1,200}")
PREFIXES = (
    *("acct", "bpc", "ch", "clock", "cn", "cs", "cs_live", "cs_test", "cus", "di", "ent", "evt", "feat", "ii"),
    *("il", "in", "inpay", "pi", "plan", "pm", "price", "prod", "promo", "py", "re", "req", "seti", "si"),
    *("src", "sub", "sub_sched", "txcd", "txi", "txr"),
)
KNOWN_ID = re.compile(rf"(?:{'|'.join(PREFIXES)})_[A-Za-z0-9]{{1,200}}")
COUNTRY = re.compile(r"[A-Z]{2}")
WORD = re.compile(r"[a-z][a-z0-9_.]{0,99}")
NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?|inf")
MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{5,15}Z")
VERSION = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(\.[a-z]{1,30})?")
CALLED = re.compile(r"[A-Za-z0-9_.-]{1,200}")

# Words of Stripe's, out of lists of Stripe's.
WORDS = frozenset(
    {
        *("object", "type", "status", "reason", "billing_reason", "collection_method", "currency", "interval"),
        *("usage_type", "billing_scheme", "tiers_mode", "aggregate_usage", "tax_behavior", "pricing_type"),
        *("mode", "ui_mode", "submit_type", "payment_status", "payment_behavior", "payment_method_collection"),
        *("payment_method_types", "save_default_payment_method", "missing_payment_method", "behavior"),
        *("proration_behavior", "proration_discounts", "feedback", "duration", "tax_exempt", "provider"),
        *("customer_creation", "billing_address_collection", "disabled_reason", "request_three_d_secure"),
    }
)
# What the names of numbers are made of: `amount_due`, `unit_amount_decimal`, `trial_period_days`, `ended_at`.
NUMBERS = frozenset(
    {
        *("amount", "subtotal", "total", "balance", "quantity", "count", "percent", "percentage", "decimal"),
        *("days", "at", "start", "end", "date", "anchor", "created", "webhooks", "redemptions", "due"),
    }
)
NUMBERS_TOO = frozenset({"tax", "up_to", "divide_by", "duration_in_months", "day_of_month"})
SOLD = frozenset({"product", "price", "plan", "coupon", "tax_rate", "entitlements.feature"})
SOLD_SHOWS = frozenset({"name", "description", "nickname", "unit_label"})
SOLD_IDS = frozenset({"id", "product", "default_price"})  # an account may have named them itself
OURS = frozenset({"tenant_id", "billing_intent"})  # what we write into metadata
TERMS = ("feature.", "limit.")  # and what we read in it, of what is sold
TERMS_TOO = frozenset({"plan", *catalogue.WORDS})


def event(body: Json) -> Json:
    """The event, with MASK in place of what is not for everybody."""
    if body.get("type") in USED:
        return {key: _masked(one, key, body, DEEPEST) for key, one in body.items()}
    data = body.get("data")
    shown = _only(ENVELOPE, body)
    if isinstance(data, dict):
        thing = data.get("object")
        shown["data"] = {"object": _only(ABOUT, thing) if isinstance(thing, dict) else MASK}
    return shown


def metadata(of: Json) -> Json:
    """What everybody may see of what is said in an object's metadata."""
    said = of.get("metadata")
    return {name: _said(one, name, of) for name, one in said.items()} if isinstance(said, dict) else {}


def address(email: str | None) -> str | None:
    """Enough of an e-mail address to tell two apart."""
    if not email:
        return None
    name, _, domain = email.rpartition("@")
    return f"{name[:1]}…@{domain}" if name else "…"


def _only(names: Collection[str], within: Json) -> Json:
    return {key: _masked(one, key, within, 0) if key in names else MASK for key, one in within.items()}


def _masked(value: Any, key: str, within: Json, deeper: int) -> Any:
    if value is None or isinstance(value, bool) or value in ("", [], {}):
        return value
    if isinstance(value, dict | list) and not deeper:
        return MASK
    if isinstance(value, list):
        return [_masked(one, key, within, deeper - 1) for one in value]
    if isinstance(value, dict):
        if key == "metadata":
            return metadata(within)
        return {name: _masked(one, name, value, deeper - 1) for name, one in value.items()}
    return value if _is_shown(str(value), key, within) else MASK


def _said(value: Any, name: str, within: Json) -> Any:
    """In metadata: what we write or read there."""
    is_term = within.get("object") in SOLD and (name.startswith(TERMS) or name in TERMS_TOO)
    return value if value == "" or name in OURS or is_term else MASK


def _is_shown(value: str, key: str, within: Json) -> bool:
    """Whether a word or a number is known to be for everybody: by its name, and by how it looks."""
    if any(sign in key for sign in OPENS):
        return False
    if within.get("object") in SOLD and key in SOLD_SHOWS:
        return True
    if key == "number":
        return within.get("object") == "invoice"
    looks = [KNOWN_ID]
    if key == "id":
        looks.append(CALLED if within.get("object") in SOLD else ID)
    elif key in WORDS:
        looks.append(WORD)
    elif key == "country":
        looks.append(COUNTRY)
    elif key == "api_version":
        looks.append(VERSION)
    elif key == "lookup_key" or key in SOLD_IDS:
        looks.append(CALLED)
    elif key in NUMBERS_TOO or not NUMBERS.isdisjoint(key.split("_")):
        looks += [NUMBER, MOMENT]
    return any(look.fullmatch(value) for look in looks)
