"""What a tenant may use: `evaluate`, pure and total.

Facts, catalogue, overrides, rules and a moment go in; the document, why it says so, and when to look again come
out. Whether a tenant has access comes from its subscriptions' status, what it has from their features. Equal
facts give equal documents, and only the moments named by `next_look` change one while the facts stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from billing.catalogue import Catalogue, Plan, Rules, Term, key_of
from billing.events import LATEST, Json
from billing.overrides import Override
from billing.subscriptions import FINAL, Facts, Item

DAY = 24 * 3600
SLACK = 3600  # after a known end, for Stripe to say what became of it
NEWS_DUE = 600  # after a moment at which Stripe ought to say something; then it is asked

STATES = ("active", "trialing", "grace", "suspended", "pending", "none")  # the best of several counts
ACCESS = frozenset({"active", "trialing", "grace"})


@dataclass(frozen=True, slots=True)
class Held:
    """A subscription as the mirror has it, and since when it is overdue."""

    id: str
    facts: Facts
    overdue_since: int | None


@dataclass(frozen=True, slots=True)
class Tenant:
    """All that is known of a tenant. `entitlements` are lookup keys of Stripe's features."""

    id: str
    customer: str | None = None
    subscriptions: tuple[Held, ...] = ()
    entitlements: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came out. At `next_look` the document may come to differ, or Stripe owes us word."""

    document: Json
    why: Json
    next_look: float | None


# ---- one subscription


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a subscription stands at a moment, and until when it surely does."""

    held: Held
    state: str
    because: str
    until: float | None = None  # it stands so until then at most
    grace_until: float | None = None

    @property
    def has_access(self) -> bool:
        """Whether its features count."""
        return self.state in ACCESS


def stands(held: Held, rules: Rules, now: float) -> Standing:
    """The status table."""
    facts = held.facts
    end = ends_at(facts)
    if facts.status in FINAL:
        return Standing(held, "none", f"{facts.status} at Stripe")
    if end is not None and end + SLACK <= now:
        return Standing(held, "none", "its end has passed, and Stripe has said nothing since")
    over = None if end is None else end + SLACK
    if facts.status == "active":
        paused = "; its collection is paused, which keeps access" if facts.pause_behavior else ""
        return Standing(held, "active", f"active at Stripe{paused}", over)
    if facts.status == "trialing":
        return _on_trial(held, over, now)
    if facts.status == "past_due":
        return _in_grace(held, rules, over, now)
    because = {
        "unpaid": "unpaid: Stripe has given up collecting",
        "paused": "paused: its trial ended without a way to pay",
        "incomplete": "incomplete: its first payment is not through",
    }
    state = "pending" if facts.status == "incomplete" else "suspended"
    return Standing(held, state, because.get(facts.status, "a status nobody here knows"), over)


def _on_trial(held: Held, over: float | None, now: float) -> Standing:
    end = held.facts.trial_end
    if end is None:
        return Standing(held, "trialing", "trialing at Stripe", over)
    if end + SLACK <= now:
        return Standing(held, "suspended", "its trial has ended, and Stripe has said nothing since", over)
    return Standing(held, "trialing", "trialing at Stripe", _earliest(end + SLACK, over))


def _in_grace(held: Held, rules: Rules, over: float | None, now: float) -> Standing:
    """Stripe's own retries are the grace, unless the settings cap it from the day payment was due."""
    if not rules.grace_after_trial and never_paid(held):
        return Standing(held, "suspended", "past due, and never paid since its trial", over)
    since = overdue_since(held)
    if rules.grace_days is None or since is None:
        return Standing(held, "grace", "past due: Stripe goes on trying", over)
    end = since + rules.grace_days * DAY
    if end <= now:
        return Standing(held, "suspended", f"past due for more than {rules.grace_days} days", over)
    because = f"past due, for no more than {rules.grace_days} days"
    return Standing(held, "grace", because, _earliest(end, over), grace_until=end)


def ends_at(facts: Facts) -> int | None:
    """When it will end, where somebody has said so."""
    if facts.cancel_at is not None:
        return facts.cancel_at
    return period_end(facts) if facts.cancel_at_period_end else None


def period_end(facts: Facts) -> int | None:
    """The end of the last of its items' periods."""
    return max((item.period_end for item in facts.items if item.period_end is not None), default=None)


def overdue_since(held: Held) -> int | None:
    """Since when it is overdue: retries change nothing of it."""
    if held.overdue_since is not None:
        return held.overdue_since
    starts = [item.period_start for item in held.facts.items if item.period_start is not None]
    return min(starts, default=None)  # until Stripe has told us of the invoice


def never_paid(held: Held) -> bool:
    """Whether what is overdue is the first that fell due after a trial."""
    since, trial_end, items = overdue_since(held), held.facts.trial_end, held.facts.items
    if since is None or trial_end is None:
        return False
    began = min((item.period_start for item in items if item.period_start is not None), default=trial_end)
    if trial_end < began <= since:  # of a later period than the first
        return False
    spans = [
        i.period_end - i.period_start for i in items if i.period_start is not None and i.period_end is not None
    ]
    return trial_end <= since < trial_end + min(spans, default=DAY) / 2  # months are not equally long


def _news_due(facts: Facts) -> Iterator[int]:
    """When Stripe ought to have told us of a renewal, an end of trial, or an end."""
    if facts.status in ("active", "trialing", "past_due"):
        due = (facts.trial_end, ends_at(facts), *(item.period_end for item in facts.items))
        yield from (moment + NEWS_DUE for moment in due if moment is not None)


# ---- features


@dataclass
class Sum:
    """What all items together give of one feature."""

    enabled: bool = False
    limit: int | None = 0  # None: without end
    is_limited: bool = False
    sources: list[Json] = field(default_factory=list)

    def add(self, term: Term, quantity: int | None, source: Json) -> None:
        """One item's share. What counts units gives nothing where none are counted."""
        self.sources.append({**source, "says": term.says})
        limit = term.limit
        self.is_limited = self.is_limited or limit is not None  # one that gives nothing says how many, too
        if not term.enabled:
            return
        self.enabled = True
        if limit and limit.unlimited:
            self.limit = None
        elif limit and self.limit is not None:
            self.limit += limit.fixed + limit.per_unit * (quantity or 0)

    def value(self, limited: bool) -> Json:
        """As the document has it."""
        if not (limited or self.is_limited):
            return {"enabled": self.enabled}
        limit = self.limit if self.is_limited else None  # granted, and nobody said how many
        if not self.enabled or limit == 0:
            return {"enabled": False, "limit": 0}
        return {"enabled": True, "limit": limit}


def _bought(tenant: Tenant, standings: Sequence[Standing], catalogue: Catalogue) -> dict[str, Sum]:
    """The union over all items of subscriptions with access."""
    sums: dict[str, Sum] = {}
    having = [standing for standing in standings if standing.has_access]
    for standing in having:
        for item in standing.held.facts.items:
            source: Json = {"from": "subscription", "subscription": standing.held.id, "price": item.price}
            source |= {} if item.quantity is None else {"quantity": item.quantity}
            _add(sums, _terms(item, catalogue), (), item.quantity, source)
    # Stripe leaves them while a subscription is paused or unpaid; what only such a one gives does not count.
    left = [one for one in standings if not one.has_access and one.held.facts.status not in FINAL]
    lost = _entitled(left, catalogue)
    kept = tenant.entitlements - (lost - _entitled(having, catalogue))
    _add(sums, {}, sorted(kept), None, {"from": "entitlement"})
    return sums


def _add(
    sums: dict[str, Sum],
    terms: Mapping[str, Term],
    entitles: Iterable[str],
    quantity: int | None,
    source: Json,
) -> None:
    """So many of what gives these terms, and these features of Stripe's."""
    for key, term in terms.items():
        sums.setdefault(key, Sum()).add(term, quantity, source)
    for lookup_key in entitles:
        if known := key_of(lookup_key):
            sums.setdefault(known, Sum()).add(Term(True, None, lookup_key), quantity, source)


def _entitled(standings: Iterable[Standing], catalogue: Catalogue) -> set[str]:
    """What the products of these are known to give of Stripe's features."""
    return catalogue.entitled(item.product for standing in standings for item in standing.held.facts.items)


def _terms(item: Item, catalogue: Catalogue) -> Mapping[str, Term]:
    if item.price in catalogue.terms:
        return catalogue.terms[item.price]
    return catalogue.without_price.get(item.product, {})


def _by_default(catalogue: Catalogue, rules: Rules) -> dict[str, Sum]:
    """What whoever has no access has."""
    product = catalogue.default(rules.default_plan)
    sums: dict[str, Sum] = {}
    if product:
        source: Json = {"from": "default_plan", "product": product.id}
        _add(sums, catalogue.without_price[product.id], product.entitles, 1, source)
    return sums


def features_of(plan: Plan, catalogue: Catalogue) -> Json:
    """What one unit of a plan gives, every feature listed, as a document would have it."""
    sums: dict[str, Sum] = {}
    _add(sums, plan.terms, plan.product.entitles, None if plan.price.metered else 1, {})
    return {key: sums.get(key, Sum()).value(key in catalogue.limited) for key in sorted(catalogue.keys)}


def _overridden(override: Override, limited: bool) -> Json | None:
    term = override.term
    if term is None:
        return None
    whole = Sum()
    whole.add(term, None, {})
    return whole.value(limited or term.limit is not None)


# ---- the document


def evaluate(
    tenant: Tenant, catalogue: Catalogue, overrides: Sequence[Override], rules: Rules, now: float
) -> Evaluation:
    """What this tenant may use at this moment, and why."""
    standings = sorted((stands(held, rules, now) for held in tenant.subscriptions), key=_rank)
    having = [standing for standing in standings if standing.has_access]
    sums = _bought(tenant, standings, catalogue) if having else _by_default(catalogue, rules)
    in_force = {o.feature: o for o in overrides if o.expires_at is None or o.expires_at > now}
    limited = catalogue.limited
    features: Json = {}
    sources: dict[str, list[Json]] = {}
    for key in sorted(catalogue.keys | sums.keys() | in_force.keys()):
        given = sums.get(key, Sum())
        features[key] = given.value(key in limited)
        sources[key] = given.sources
        if override := in_force.get(key):
            features[key] = _overridden(override, key in limited) or features[key]
            sources[key] = [*given.sources, _source(override)]
    best = standings[0] if standings and standings[0].state != "none" else None
    document = {**_state(tenant, best, having, catalogue, rules), "features": features}
    document |= {"stripe": _at_stripe(tenant, best), "livemode": rules.livemode}
    why: Json = {"state": best.because if best else "no subscription", "features": sources}
    return Evaluation(document, why, _next_look(standings, overrides, now))


def _rank(standing: Standing) -> tuple[int, int, str]:
    return STATES.index(standing.state), -(standing.held.facts.started_at or 0), standing.held.id


def _state(
    tenant: Tenant, best: Standing | None, having: list[Standing], catalogue: Catalogue, rules: Rules
) -> Json:
    default = catalogue.default(rules.default_plan)
    facts = best.held.facts if best else None
    item = main_item(facts, catalogue) if facts else None
    ends = [standing.until for standing in having]
    known = [end for end in ends if end is not None]
    return {
        "state": best.state if best else "none",
        "access": bool(having),
        "plan": _plan(item, catalogue) if item else rules.default_plan if default and not best else None,
        "quantity": item.quantity if item else None,
        "current_period_end": written(item.period_end if item else None),
        "trial_end": written(facts.trial_end if facts and facts.status == "trialing" else None),
        "grace_until": written(best.grace_until if best else None),
        "cancel_at": written(ends_at(facts) if facts else None),
        "valid_until": written(max(known) if known and len(known) == len(ends) else None),
    }


def _at_stripe(tenant: Tenant, best: Standing | None) -> Json:
    held = best.held if best else None
    status = held.facts.status if held else None
    return {"customer": tenant.customer, "subscription": held.id if held else None, "status": status}


def main_item(facts: Facts, catalogue: Catalogue) -> Item | None:
    """Of several, the one that is the plan: it has a plan's key, and costs the most."""

    def rank(item: Item) -> tuple[bool, int, str]:
        price = catalogue.prices.get(item.price)
        return not (price and price.lookup_key), -((price and price.amount) or 0), item.id

    return min(facts.items, key=rank, default=None)


def _plan(item: Item, catalogue: Catalogue) -> str | None:
    price, product = catalogue.prices.get(item.price), catalogue.products.get(item.product)
    return (price.lookup_key if price else None) or (product.metadata.get("plan") if product else None)


def _source(override: Override) -> Json:
    return {
        "from": "override",
        "says": override.value,
        "author": override.author,
        "reason": override.reason,
        "expires_at": written(override.expires_at),
    }


def _next_look(standings: Sequence[Standing], overrides: Iterable[Override], now: float) -> float | None:
    moments: list[float] = [override.expires_at for override in overrides if override.expires_at is not None]
    for standing in standings:
        moments += [standing.until] if standing.until is not None else []
        moments += _news_due(standing.held.facts)
    return min((moment for moment in moments if now < moment < LATEST), default=None)


def _earliest(*moments: float | None) -> float | None:
    return min((moment for moment in moments if moment is not None), default=None)


def written(moment: float | None) -> str | None:
    """A moment as documents have it."""
    if moment is None or moment >= LATEST:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
