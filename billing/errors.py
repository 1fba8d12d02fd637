"""Every refusal this service utters: one family, each member with its status and its sentence.

Raised where the fact is known, turned into JSON in one place (`web.answers`). A member without a `code` answers
with the single key `error`: those bodies are fixed byte for byte. A member with one adds `code`,
`request_id` and, where an input is at fault, `param`. No sentence ever repeats a value a caller sent.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import ClassVar


class BillingError(Exception):
    """Something that nobody foresaw.

    The root of all others. `retry_after` is in seconds and becomes a header; `always` are headers each one has.
    """

    status = 500
    code: str | None = None
    sentence = "Internal server error"
    param: str | None = None
    always: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self, sentence: str | None = None, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(sentence or self.sentence)
        self.param = param or self.param
        self.headers = dict(self.always) | ({"Retry-After": str(retry_after)} if retry_after else {})

    @classmethod
    def example(cls) -> BillingError:
        """One as a caller may meet it, for the contract."""
        return cls()

    @property
    def outcome(self) -> str:
        """A short word for logs, counters and the audit trail."""
        return self.code or type(self).__name__


class Unauthorized(BillingError):
    """No token, or one that does not hold; one sentence for all reasons, so that it tells nothing."""

    status = 401
    sentence = "Unauthorized"
    always: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class NoTenant(BillingError):
    """The token is good and names no tenant."""

    status = 400
    sentence = "No tenant context found"


class NoCustomer(BillingError):
    """The tenant has never been linked to a Stripe customer."""

    status = 404
    sentence = "No Stripe customer found for this tenant"


class Forbidden(BillingError):
    """The member's role may not do this."""

    status = 403
    code = "forbidden"
    sentence = "Your role does not allow this; ask somebody who manages billing"


class UserTokenRequired(BillingError):
    """The token is a service's, and the route is for the members of a tenant."""

    status = 403
    code = "user_token_required"
    sentence = "This route takes the token of a signed-in user, not that of a service"


class ServiceTokenRequired(BillingError):
    """The token is a user's, and the route is for services."""

    status = 403
    code = "service_token_required"
    sentence = "This route takes the token of a service, not that of a user"


class InsufficientScope(BillingError):
    """The service's token is good, and not for this."""

    status = 403
    code = "insufficient_scope"
    sentence = "The token lacks the scope that this route needs"


class TooManyTokens(BillingError):
    """Two tokens of a name are enough to go from one to the next."""

    status = 409
    code = "too_many_tokens"
    sentence = "Two tokens of this name are alive; revoke one of them first"


class TenantNotFound(BillingError):
    """Nobody has ever spoken of this tenant, or no tenant can have such an id."""

    status = 404
    code = "tenant_not_found"
    sentence = "No such tenant"


class InvalidRequest(BillingError):
    """A member of the request is not what the contract says."""

    status = 400
    code = "invalid_request"
    sentence = "The request is not valid"


class ReturnUrlNotAllowed(InvalidRequest):
    """A return address outside the allow-list."""

    code = "return_url_not_allowed"
    param = "return_url"
    sentence = "return_url: must be a path, or an address on an allowed origin"


class BadCursor(InvalidRequest):
    """A position in the feed that was never one of ours."""

    code = "bad_cursor"
    sentence = "lastEventId: must be the id of a change, as it came; leave it out to start from the beginning"


class NotJson(BillingError):
    """A body of some other kind."""

    status = 415
    code = "unsupported_media_type"
    sentence = "Content-Type must be application/json"


class BodyTooLarge(BillingError):
    """More than any request of ours needs."""

    status = 413
    code = "body_too_large"
    sentence = "The request body is too large"


class IdempotencyKeyReused(BillingError):
    """The same Idempotency-Key came with other parameters."""

    status = 422
    code = "idempotency_key_reused"
    sentence = "This Idempotency-Key was used with other parameters; use a new one"


class TooManyLinks(BillingError):
    """A tenant asked for more links in a minute than it may."""

    status = 429
    code = "rate_limited"
    sentence = "Too many links were asked for; try again later"

    @classmethod
    def example(cls) -> BillingError:
        """How long to wait is counted."""
        return cls(retry_after=60)


class AlreadyLinked(BillingError):
    """The Stripe customer belongs to another tenant."""

    status = 409
    code = "already_linked"
    sentence = "This Stripe customer is linked to another tenant; unlink it there first"


class OtherCustomer(BillingError):
    """The tenant has a Stripe customer, and it is not the one that is named."""

    status = 409
    code = "other_customer"
    sentence = "This tenant has another Stripe customer; only an operator can change that"


class CustomerOfAnother(BillingError):
    """The Stripe customer's metadata names another tenant."""

    status = 409
    code = "customer_of_another"
    sentence = (
        "This Stripe customer's metadata has another tenant_id; if that is wrong, mend it at Stripe first"
    )


class CustomerNotFound(BillingError):
    """Stripe knows no such customer, or only as a deleted one."""

    status = 404
    code = "customer_not_found"
    sentence = "Stripe knows no such customer, or only as a deleted one"


class BadSignature(BillingError):
    """The webhook's signature is missing, wrong, or too old; one sentence for all, so that it tells nothing."""

    status = 400
    sentence = "Invalid signature"


class BadEvent(BillingError):
    """The webhook is signed and no event: no JSON object with an id and a type."""

    status = 400
    sentence = "Invalid payload"


class PlanNotFound(BillingError):
    """No plan on offer has this key."""

    status = 404
    code = "plan_not_found"
    param = "plan"
    sentence = "plan: is not one of the plans on offer"


class CheckoutNotFound(BillingError):
    """No Checkout of this tenant's has this id, whoever else's it may be."""

    status = 404
    code = "checkout_not_found"
    sentence = "No such checkout"


class AlreadySubscribed(BillingError):
    """The tenant has a subscription: whatever is wrong with it is mended in the portal, not by a second one."""

    status = 409
    code = "already_subscribed"
    sentence = "There is a subscription already; change it in the customer portal"


class PaymentProcessing(BillingError):
    """A Checkout is done, and its payment is not through yet."""

    status = 409
    code = "payment_processing"
    sentence = "A payment is still on its way; wait for its outcome before starting another checkout"


class NoSubscription(BillingError):
    """The flow wants a subscription, and the tenant has none, or one that was never paid."""

    status = 409
    code = "no_subscription"
    sentence = "There is no subscription; start one with a checkout"


class AlreadyCanceling(BillingError):
    """Its end is set already."""

    status = 409
    code = "already_canceling"
    sentence = "The subscription is already set to end; open the plain portal to resume it"


class MultipleItems(BillingError):
    """Stripe's portal changes subscriptions of a single item only."""

    status = 409
    code = "multiple_items"
    sentence = "A subscription with several items cannot be changed in the portal"


class PlanNotOffered(BillingError):
    """The portal's configuration does not list the price."""

    status = 409
    code = "plan_not_offered"
    sentence = "The customer portal does not offer this plan"


class NoChange(BillingError):
    """The subscription is what is asked for already."""

    status = 409
    code = "no_change"
    sentence = "The subscription has this plan and quantity already"


class CheckoutUnderWay(BillingError):
    """A tenant cannot be given another customer while its own may be paying."""

    status = 409
    code = "checkout_under_way"
    sentence = "A checkout of this tenant is under way; try again when it is done or has expired"


class StillSubscribed(BillingError):
    """A tenant whose subscription is not over cannot be forgotten."""

    status = 409
    code = "still_subscribed"
    sentence = "This tenant has a subscription that is not over; end it at Stripe first"


class StateUnknown(BillingError):
    """Stripe has never told us about this tenant, and cannot be asked just now."""

    status = 503
    code = "state_unknown"
    sentence = "What this tenant may use is not known yet"
    always: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


class CatalogueUnknown(BillingError):
    """Nobody has read Stripe's catalogue yet: the worker does it when it starts."""

    status = 503
    code = "catalogue_unknown"
    sentence = "What can be bought is not known yet"
    always: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}


class CheckoutBusy(BillingError):
    """Others are changing the same thing: opening a Checkout for the tenant, or linking another customer."""

    status = 503
    code = "checkout_busy"
    sentence = "Another checkout of this tenant is being opened; try again"
    always: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}


class StripeRefused(BillingError):
    """Stripe would not do it: our fault or our settings', and rarely of use to try again."""

    status = 502
    code = "stripe_error"
    sentence = "Stripe refused the request"


class StripeUnavailable(BillingError):
    """Stripe is away, too slow, or wants us to slow down."""

    status = 503
    code = "stripe_unavailable"
    sentence = "Stripe cannot be reached; try again"
    always: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


AWAY = frozenset({"unreachable", "broken", "rate_limited", "key_refused", "paused", "stopping"})


class StripeFailed(BillingError):
    """Stripe refused, failed, or did not answer in time. Unless a door says more, callers see a 500."""

    def __init__(
        self,
        reason: str,
        *,
        retry_after: int | None = None,
        code: str | None = None,
        about: str | None = None,
        replayed: bool = False,
        status: int | None = None,
    ) -> None:
        super().__init__(retry_after=retry_after)
        self.reason = reason
        self.status_at_stripe = status  # of its answer, where there was one
        self.code_at_stripe = code
        self.about = about  # the parameter at fault, by Stripe's name
        self.replayed = replayed  # what an earlier request with the same key had come to

    @classmethod
    def example(cls) -> BillingError:
        """The kind it is worth waiting for."""
        return cls("unavailable", retry_after=5)

    @property
    def outcome(self) -> str:
        """Stripe's own word for it, where it gave one."""
        return f"stripe_{self.reason}"

    @property
    def is_away(self) -> bool:
        """Whether whatever else Stripe were asked would fare no better."""
        return self.reason in AWAY

    @property
    def told(self) -> BillingError:
        """What a caller is told of it, where the contract has a word for it."""
        if self.reason in ("refused", "key_refused"):
            return StripeRefused()
        return StripeUnavailable()


class ServiceUnavailable(BillingError):
    """Something we stand on is away for now: the database, or the issuer's keys."""

    status = 503
    sentence = "Service unavailable"
    always: ClassVar[Mapping[str, str]] = {"Retry-After": "2"}

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    @classmethod
    def example(cls) -> BillingError:
        """What is away is not told."""
        return cls("database")

    @property
    def outcome(self) -> str:
        """Which of them it was."""
        return f"{self.what}_unavailable"


class Busy(ServiceUnavailable):
    """The database is there, and took too long over this: it is locked by somebody, or too much."""

    @property
    def outcome(self) -> str:
        """Not the word for one that is away."""
        return f"{self.what}_busy"


PLACES = 12  # the innermost


def outline(fault: BaseException) -> str:
    """What went wrong and where: a line for its kind, one for each place in our code, and the innermost.

    Without its sentence, and without any value: what failed may have been somebody's address.
    """
    kinds, cause = [type(fault).__name__], fault.__cause__
    while cause is not None and len(kinds) < PLACES:
        kinds.append(type(cause).__name__)
        cause = cause.__cause__
    walked = [
        (str(frame.f_globals.get("__name__")), line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(fault.__traceback__)
    ]
    ours = [place for place in walked[:-1] if place[0].startswith("billing.")]
    places = [f"{module}, line {line}, in {name}" for module, line, name in (ours + walked[-1:])[-PLACES:]]
    return "\n".join([" from ".join(kinds), *places])
