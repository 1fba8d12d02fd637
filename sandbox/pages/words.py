"""How amounts, dates and states are said to people. Dates are those of Stripe's clock, in UTC."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import urlsplit

from sandbox import bills, discounts
from sandbox.store import Json, Store

# Stripe's list: amounts of these are whole units, or thousandths; all others are hundredths.
WHOLE = {
    *("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof"),
    "xpf",
}
THOUSANDTHS = {"bhd", "jod", "kwd", "omr", "tnd"}

SYMBOLS = {"eur": "€", "gbp": "£", "jpy": "¥", "usd": "$"}

METHODS = {"card": "Card", "sepa_debit": "SEPA debit", "us_bank_account": "Bank account"}

REASONS = {
    "customer_service": "The service was not what I expected",
    "low_quality": "The quality was not what I expected",
    "missing_features": "Something I need is missing",
    "other": "Another reason",
    "switched_service": "I use something else now",
    "too_complex": "It is too complicated",
    "too_expensive": "It is too expensive",
    "unused": "I do not use it enough",
}


def money(amount: int, currency: str) -> str:
    places = 0 if currency in WHOLE else 3 if currency in THOUSANDTHS else 2
    number = f"{Decimal(abs(amount)).scaleb(-places):,.{places}f}"
    symbol = SYMBOLS.get(currency, currency.upper() + "\N{NO-BREAK SPACE}")
    return ("\N{MINUS SIGN}" if amount < 0 else "") + symbol + number


def date(instant: int) -> str:
    return f"{datetime.fromtimestamp(instant, UTC):%-d %B %Y}"


def short_date(instant: int) -> str:
    return f"{datetime.fromtimestamp(instant, UTC):%-d %b %Y}"


def per(price: Json) -> str:
    """How often it is paid, to stand behind an amount."""
    if not price["recurring"]:
        return ""
    interval, count = price["recurring"]["interval"], price["recurring"]["interval_count"]
    return f"per {interval}" if count == 1 else f"every {count} {interval}s"


def seats(quantity: int) -> str:
    return f"{quantity} seat{'' if quantity == 1 else 's'}"


def off(coupon: Json) -> str:
    percent, amount = coupon["percent_off"], coupon["amount_off"]
    what = money(amount, coupon["currency"]) if percent is None else f"{percent:g}%"
    months = coupon["duration_in_months"]
    lasts = {"forever": "", "once": " once", "repeating": f" for {months} month{'s' if months != 1 else ''}"}
    return f"{what} off{lasts[coupon['duration']]}"


def method(thing: Json) -> str:
    details = thing[thing["type"]]
    name = details["brand"].title() if thing["type"] == "card" else METHODS[thing["type"]]
    return f"{name} ending in {details['last4']}"


def site(url: str) -> str:
    return urlsplit(url).netloc


def name_of(store: Store, price: Json) -> str:
    """What is sold at a price."""
    name: str = store.find("product", price["product"])["name"]
    return name


def amount_of(store: Store, subscription: Json) -> str:
    """What each period costs, before anything is taken off."""
    items = bills.items_of(store, subscription)
    whole, currency = bills.price_of(items), subscription["currency"]
    return f"{money(whole, currency)} {per(items[0]['price'])}"


def reductions(store: Store, subscription: Json) -> list[str]:
    return [off(discounts.coupon_of(store, discount)) for discount in discounts.current(store, subscription)]


def standing(subscription: Json) -> tuple[str, str]:
    """How a subscription stands: a word, and a sentence or two."""
    status, period_end = subscription["status"], subscription["items"]["data"][0]["current_period_end"]
    label, sentence = {
        "active": ("Active", f"Renews on {date(period_end)}."),
        "canceled": ("Ended", "This subscription is over."),
        "incomplete": ("Incomplete", "Its first invoice is to be paid within 23 hours."),
        "incomplete_expired": ("Ended", "Its first invoice was not paid in time."),
        "past_due": ("Past due", "The latest payment failed. Change your card or pay the open invoice."),
        "paused": ("Paused", "Its trial ended and nothing was there to pay by."),
        "trialing": ("Free trial", f"Free until {date(period_end)}, then paid."),
        "unpaid": ("Unpaid", "All attempts to be paid failed. Pay the open invoices to go on."),
    }[status]
    if not subscription["cancel_at"] or status in bills.ENDED:
        return label, sentence
    ends = f"Ends on {date(subscription['cancel_at'])}."
    return ("Canceled", ends) if status in ("active", "trialing") else (label, f"{sentence} {ends}")


FILTERS: dict[str, Callable[..., str]] = {
    "date": date,
    "method": method,
    "money": money,
    "off": off,
    "per": per,
    "seats": seats,
    "short_date": short_date,
    "site": site,
}
