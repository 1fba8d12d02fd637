"""What operators are told where something failed: what it is, and what to do about it."""

from __future__ import annotations

from billing.errors import BillingError, ServiceUnavailable, StripeFailed

UNREADABLE = "Its body cannot be read. Fetch it from Stripe by its id, or ignore it."
AGAIN = "try again, and see the overview if it stays so"
OTHER = "is it of another account, or of the other mode?"
STRIPES: dict[str, str] = {
    "key_refused": "Stripe does not take STRIPE_SECRET_KEY for this: correct it, and ask the doctor",
    "unreachable": "Stripe does not answer: try again, see status.stripe.com and this network's way out",
    "rate_limited": "Stripe asks to slow down: try again in some seconds",
    "paused": "Stripe is not asked just now: it has refused, or too many wait. Try again in a minute",
    "broken": "Stripe failed: try again, and see status.stripe.com",
    "nonsense": "Stripe's answer makes no sense: see status.stripe.com, and STRIPE_API_BASE",
    "refused": "Stripe refused the request: the log says why, at stripe.failed",
    "not_found": f"Stripe has no such thing under this key: {OTHER}",
    "unknown_customer": f"Stripe has no such customer under this key: {OTHER}",
    "unanswered": f"Stripe has not answered in time; a worker goes on asking: {AGAIN}",
    "overtaken": f"Something came in meanwhile: {AGAIN}",
    "no_customer": f"Stripe made no customer: {AGAIN}",
    "stopping": "This process is stopping: try again",
}
# Why an event was not worked on, or was given up.
REASONS: dict[str, str] = {
    "thin_event": "It names what changed and does not carry it. Have the endpoint send snapshot events.",
    "other_account": "It is of a connected account, whose business is not this service's. Nothing to do.",
    "wrong_livemode": "It is of the other mode than the key: each mode's endpoint needs its own service.",
    "nothing_to_keep": "Nothing of it is kept here: what it changes is read where it is needed. Nothing to do.",
    "unknown_type": "This type is not used here, and the endpoint need not send it. Nothing to do.",
    "ignored": "An operator was done with it. Retry works on it all the same.",
    "names no customer": "A subscription without a customer: look at it in Stripe, or ignore it.",
    "its worker died with it, again and again": "Six workers ended over it: mend what killed them, retry.",
    "it could not be applied, again and again": "It failed ten times: see where, mend that, then retry.",
    "is not JSON": UNREADABLE,
    "is not a JSON object": UNREADABLE,
    "has no id and type": UNREADABLE,
}


def of_reason(reason: str | None) -> str | None:
    """What an event's reason means, and what to do; None for a failure's own kind, which says where to look."""
    return REASONS.get(reason or "")


NAMES = {  # of what was given, where a sentence says what that must be
    "name": "The name",
    "scope": "What it may do",
    "expires": "The end",
    "customer": "The customer",
    "after": "Where the list goes on",
}


def told(error: BillingError) -> str:
    """A sentence for who looks after the service. What callers are told is less."""
    if isinstance(error, StripeFailed):
        says = STRIPES.get(error.reason, f"Stripe could not be asked: {AGAIN}")
        return f"{says} ({error.code_at_stripe})" if error.code_at_stripe else says
    if isinstance(error, ServiceUnavailable):
        return f"The {error.what} is away, or has too much to do: {AGAIN}"
    says = str(error)
    return f"{NAMES.get(error.param or '', 'It')} {says}" if says.startswith("must ") else says
