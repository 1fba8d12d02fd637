"""What operators are told where something failed: what it is, and what to do about it."""

from __future__ import annotations

from billing.errors import BillingError, ServiceUnavailable, StripeFailed

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
