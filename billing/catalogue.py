"""What can be sold and what it gives, as Stripe's catalogue says: the table `catalogue`.

Products and prices carry their terms in metadata (`feature.sso = true`, `limit.projects = 10*quantity`), a
price before its product; products may also carry Stripe's own entitlement features. The catalogue is read
whole and kept whole, together with the rules the settings make, under an `edition` that grows when either
changes: all that documents are measured by. Nothing here raises on what somebody typed into Stripe: it becomes
a fault that operators see, and gives nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    LargeBinary,
    Row,
    Table,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from billing.db import metadata
from billing.events import Json, name, part, reference

KEY = re.compile(r"[a-z][a-z0-9_]{0,62}")
LIMIT = re.compile(
    r"(?:(?P<fixed>\d{1,15})|(?P<unlimited>unlimited)|(?:(?P<times>\d{1,15})\s*\*\s*)?quantity)", re.ASCII
)
MOST_SEATS = 1_000_000
DEFAULT_PLAN = "BILLING_DEFAULT_PLAN"
WORDS = {  # what else metadata may say, and how
    **dict.fromkeys(("hidden", "per_seat"), re.compile(r"true|false")),
    **dict.fromkeys(("trial_days", "min_quantity", "max_quantity"), re.compile(r"\d{1,7}", re.ASCII)),
    "sort": re.compile(r"-?\d{1,9}", re.ASCII),
}

catalogue = Table(
    "catalogue",
    metadata,
    Column("one", Boolean, primary_key=True, server_default=text("true")),
    Column("edition", BigInteger, nullable=False, server_default="0"),  # 0: never read
    Column("reading", BigInteger, nullable=False, server_default="0"),  # the number of the latest reading begun
    Column("kept", BigInteger, nullable=False, server_default="0"),  # the number of the one that is held
    Column("content", JSONB, nullable=False, server_default=text("'{}'")),
    Column("rules", JSONB, nullable=False, server_default=text("'{}'")),
    Column("measure", LargeBinary, nullable=False, server_default=text("''")),  # a digest of content and rules
    Column("read_at", DateTime(timezone=True)),
    CheckConstraint("one", name="one_row"),
)


# ---- terms


@dataclass(frozen=True, slots=True)
class Limit:
    """So many, and so many more for each unit bought; or without end."""

    fixed: int = 0
    per_unit: int = 0
    unlimited: bool = False


@dataclass(frozen=True, slots=True)
class Term:
    """What one item gives of one feature."""

    enabled: bool
    limit: Limit | None
    says: str  # as it was written


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in the catalogue that gives nothing because it cannot be read."""

    where: str
    key: str
    sentence: str

    @property
    def cure(self) -> str:
        """What ends it."""
        if self.where == "features":
            return "make the feature anew at Stripe, with another lookup key"
        if self.where == DEFAULT_PLAN:
            return f"give a product the metadata plan = {self.key}, or change the setting for all workers"
        return f"change the metadata {self.key} of {self.where} at Stripe, or take it away"


def read_term(kind: str, says: str) -> Term | None:
    """`feature` takes true or false, `limit` a number, `unlimited`, `quantity` or `10*quantity`."""
    said = says.strip().lower()
    if kind == "feature":
        return Term(said == "true", None, says) if said in ("true", "false") else None
    found = LIMIT.fullmatch(said)
    if not found:
        return None
    if found["unlimited"]:
        limit = Limit(unlimited=True)
    elif found["fixed"]:
        limit = Limit(fixed=int(found["fixed"]))
    else:
        limit = Limit(per_unit=int(found["times"] or 1))
    return Term(limit != Limit(), limit, says)


def key_of(lookup_key: str) -> str | None:
    """A feature's key, from the one it has at Stripe."""
    key = lookup_key.replace("-", "_")
    return key if KEY.fullmatch(key) else None


def _terms(given: Mapping[str, str], where: str) -> tuple[dict[str, Term], list[Fault]]:
    """A limit wins over a bare `feature`, except over one that says false."""
    terms: dict[str, Term] = {}
    faults: list[Fault] = []
    for name_, says in sorted(given.items()):  # feature.x comes before limit.x
        kind, _, key = name_.partition(".")
        if kind not in ("feature", "limit"):
            continue
        term = read_term(kind, says) if KEY.fullmatch(key) else None
        if term is None:
            expected = "true or false" if kind == "feature" else "a number, unlimited, quantity or 10*quantity"
            sentence = f"must be {expected}" if KEY.fullmatch(key) else "is no feature's key"
            faults.append(Fault(where, name_, sentence))
            if KEY.fullmatch(key):
                terms[key] = Term(False, Limit() if kind == "limit" else None, says)
        elif key in terms and not terms[key].enabled:
            terms[key] = Term(False, term.limit and Limit(), terms[key].says)
        else:
            terms[key] = term
    return terms, faults


# ---- the catalogue

Standing = Literal["on sale", "hidden", "archived", "no lookup key"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings decide of documents."""

    livemode: bool = False
    default_plan: str | None = None
    grace_days: int | None = None  # None: for as long as Stripe goes on trying
    grace_after_trial: bool = True


@dataclass(frozen=True, slots=True)
class Product:
    """Something sold, by whatever price."""

    id: str
    name: str
    description: str | None
    active: bool
    metadata: Mapping[str, str]
    entitles: tuple[str, ...]  # lookup keys of Stripe's entitlement features


@dataclass(frozen=True, slots=True)
class Price:
    """What a product costs; with a lookup key it is a plan."""

    id: str
    product: str
    lookup_key: str | None
    active: bool
    currency: str
    amount: int | None
    interval: str | None  # None: paid once
    interval_count: int
    metered: bool
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """A price somebody may choose."""

    key: str
    price: Price
    product: Product
    terms: Mapping[str, Term]

    @property
    def per_seat(self) -> bool:
        """Whether it is bought in a quantity of one's own choice."""
        counted = any(term.limit and term.limit.per_unit for term in self.terms.values())
        return not self.price.metered and (counted or self._says("per_seat") == "true")

    @property
    def least(self) -> int:
        """The smallest quantity that is sold."""
        return max(1, int(self._says("min_quantity") or 1)) if self.per_seat else 1

    @property
    def most(self) -> int:
        """The largest quantity that is sold."""
        return max(self.least, int(self._says("max_quantity") or MOST_SEATS)) if self.per_seat else 1

    @property
    def bounds(self) -> str:
        """What is wrong with any other quantity."""
        return f"quantity: must be from {self.least} to {self.most} for this plan"

    def trial_days(self, usual: int) -> int:
        """How long it may be tried: what the catalogue says, or what is usual."""
        return min(int(self._says("trial_days") or usual), 730)  # Stripe's own longest trial

    @property
    def place(self) -> tuple[int, int, str]:
        """Where it stands on a pricing page."""
        return int(self._says("sort") or 1_000_000_000), self.price.amount or 0, self.key

    @property
    def standing(self) -> Standing:
        """Whether it can be bought, or why not."""
        if not (self.price.active and self.product.active):
            return "archived"
        if not self.price.lookup_key:
            return "no lookup key"
        return "hidden" if self.is_hidden else "on sale"

    @property
    def is_hidden(self) -> bool:
        """Whether only who has it already may know of it."""
        said = {**self.product.metadata, **self.price.metadata}
        return (
            "hidden" in said and said_in(said, "hidden") != "false"
        )  # nothing is on sale by a slip of the pen

    def _says(self, word: str) -> str | None:
        """What the price says, or else its product, if it can be read."""
        return said_in({**self.product.metadata, **self.price.metadata}, word)


def said_in(given: Mapping[str, str], word: str) -> str | None:
    """What metadata says by one of the words; None where it says nothing, or nothing that can be read."""
    said = given.get(word, "").strip().lower()
    return said if WORDS[word].fullmatch(said) else None


@dataclass(frozen=True, eq=False)
class Catalogue:
    """One edition of it. Only ever replaced as a whole, and the same only as itself."""

    edition: int
    products: Mapping[str, Product]
    prices: Mapping[str, Price]
    features: tuple[str, ...] = ()  # lookup keys of Stripe's entitlement features
    rules: Rules = Rules()

    @cached_property
    def terms(self) -> Mapping[str, Mapping[str, Term]]:
        """What each price gives, by its id: its product's terms, replaced by its own."""
        return {id: _terms(self._said_of(price), id)[0] for id, price in self.prices.items()}

    @cached_property
    def without_price(self) -> Mapping[str, Mapping[str, Term]]:
        """What each product gives by itself, by its id."""
        return {id: _terms(product.metadata, id)[0] for id, product in self.products.items()}

    def _said_of(self, price: Price) -> Mapping[str, str]:
        product = self.products.get(price.product)
        return {**(product.metadata if product else {}), **price.metadata}

    @cached_property
    def keys(self) -> frozenset[str]:
        """Every feature anything here speaks of."""
        spoken = [key for terms in (*self.terms.values(), *self.without_price.values()) for key in terms]
        return frozenset(spoken) | {key for key in map(key_of, self.entitlements) if key}

    @cached_property
    def limited(self) -> frozenset[str]:
        """The features that have limits somewhere: without the right to them, theirs is 0."""
        every = (*self.terms.values(), *self.without_price.values())
        return frozenset(key for terms in every for key, term in terms.items() if term.limit)

    @cached_property
    def entitlements(self) -> frozenset[str]:
        """Stripe's entitlement features, by lookup key."""
        return frozenset(self.features).union(*(product.entitles for product in self.products.values()))

    def entitled(self, products: Iterable[str]) -> set[str]:
        """What these products are known to give of Stripe's features, by lookup key."""
        return {key for id in set(products) if id in self.products for key in self.products[id].entitles}

    @cached_property
    def plans(self) -> Mapping[str, Plan]:
        """What can be bought, by its key, in the order of a pricing page."""
        return {plan.key: plan for plan in self.recurring if plan.standing == "on sale"}

    @cached_property
    def recurring(self) -> tuple[Plan, ...]:
        """All that is paid again and again, by what is on sale, hidden, and not sold any more."""
        order = get_args(Standing)
        return tuple(sorted(self._recurring(), key=lambda plan: (order.index(plan.standing), plan.place)))

    def _recurring(self) -> Iterator[Plan]:
        for price in self.prices.values():
            product = self.products.get(price.product)
            if product and price.interval:
                key = price.lookup_key or price.id
                yield Plan(key, price, product, self.terms[price.id])

    def default(self, plan: str | None) -> Product | None:
        """The product that BILLING_DEFAULT_PLAN names by its metadata `plan`."""
        return self._named.get(plan or "")

    @cached_property
    def _named(self) -> Mapping[str, Product]:
        """By that metadata; of several with the same, an active one counts."""
        last_counts = sorted(self.products.values(), key=lambda one: (not one.active, one.id), reverse=True)
        return {one.metadata["plan"]: one for one in last_counts if one.metadata.get("plan")}

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What cannot be read, each once."""
        by_key: dict[str, set[str]] = {}
        for lookup_key in self.entitlements:
            by_key.setdefault(key_of(lookup_key) or "", set()).add(lookup_key)
        odd = [Fault("features", key, "is no feature's key") for key in sorted(by_key.pop("", ()))]
        odd += [
            Fault("features", key, f"is what {len(names)} features of Stripe's come to")
            for key, names in sorted(by_key.items())
            if len(names) > 1
        ]
        sold: list[Product | Price] = [*self.products.values(), *self.prices.values()]
        for one in sold:
            odd += _terms(one.metadata, one.id)[1]
            said = [word for word in WORDS if word in one.metadata and said_in(one.metadata, word) is None]
            odd += [Fault(one.id, word, "cannot be read") for word in said]
        if self.rules.default_plan and not self.default(self.rules.default_plan):
            odd.append(Fault(DEFAULT_PLAN, self.rules.default_plan, "is no product's metadata plan"))
        return tuple(dict.fromkeys(odd))


# ---- as Stripe writes it


def product_from(thing: Json, entitles: Iterable[str] = ()) -> Json | None:
    """What is kept of a product."""
    if (id := name(thing.get("id"))) is None:
        return None
    return {
        "id": id,
        "name": _words(thing.get("name")) or id,
        "description": _words(thing.get("description")),
        "active": thing.get("active") is True,
        "metadata": _metadata(thing),
        "entitles": sorted(entitles),
    }


def price_from(thing: Json) -> Json | None:
    """What is kept of a price."""
    id, product, recurring = name(thing.get("id")), reference(thing.get("product")), thing.get("recurring")
    if id is None or product is None:
        return None
    recurring = recurring if isinstance(recurring, dict) else {}
    amount, count = thing.get("unit_amount"), recurring.get("interval_count")
    return {
        "id": id,
        "product": product,
        "lookup_key": name(thing.get("lookup_key")),
        "active": thing.get("active") is True,
        "currency": name(thing.get("currency")) or "",
        "amount": amount if type(amount) is int else None,
        "interval": name(recurring.get("interval")),
        "interval_count": count if type(count) is int else 1,
        "metered": recurring.get("usage_type") == "metered",
        "metadata": _metadata(thing),
    }


def offered(configuration: Json | None) -> frozenset[str]:
    """The prices that a portal configuration lets people change to."""
    update = part(part(configuration or {}, "features"), "subscription_update")
    listed = update.get("products") if update.get("enabled") is True else None
    products = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return frozenset(price for product in products for price in product.get("prices") or ())


def _metadata(thing: Json) -> dict[str, str]:
    given = thing.get("metadata")
    pairs = given.items() if isinstance(given, dict) else ()
    return {_storable(key): _storable(says) for key, says in sorted(pairs) if isinstance(says, str)}


def _words(value: object) -> str | None:
    return _storable(value) if isinstance(value, str) and value else None


def _storable(words: str) -> str:
    """Without what no database column takes: NUL, and halves of a surrogate pair."""
    return words.replace("\0", "").encode("utf-8", "replace").decode()


def parsed(edition: int, content: Json, rules: Json) -> Catalogue:
    """A catalogue as it is kept."""
    products = (Product(**{**one, "entitles": tuple(one["entitles"])}) for one in content.get("products", ()))
    prices = (Price(**one) for one in content.get("prices", ()))
    return Catalogue(
        edition,
        {product.id: product for product in products},
        {price.id: price for price in prices},
        tuple(content.get("features", ())),
        Rules(**rules),
    )


# ---- the table

_BEGIN = text("""
    INSERT INTO catalogue (reading) VALUES (1)
    ON CONFLICT (one) DO UPDATE SET reading = catalogue.reading + 1 RETURNING reading
""")
_ENSURE = text("INSERT INTO catalogue DEFAULT VALUES ON CONFLICT DO NOTHING")
_LOCK = text(
    "SELECT edition, kept, measure, content, rules, read_at IS NOT NULL AS is_read FROM catalogue FOR UPDATE"
)
_KEEP = text("""
    UPDATE catalogue SET
        edition = :edition, measure = :measure,
        content = CAST(:content AS jsonb), rules = CAST(:rules AS jsonb),
        kept = coalesce(:reading, kept),
        read_at = CASE WHEN CAST(:reading AS bigint) IS NULL THEN read_at ELSE clock_timestamp() END
""")
_MEASURE = text("SELECT edition, measure FROM catalogue")
_CONTENT = text("SELECT edition, measure, content, rules FROM catalogue")


def begin(connection: Connection) -> int:
    """The number of a reading that begins now."""
    number: int = connection.execute(_BEGIN).scalar_one()
    return number


def keep(connection: Connection, reading: int, content: Json) -> bool:
    """Keep what a reading found, unless one that began later is held. Whether that made a new edition."""
    held = connection.execute(_LOCK).one()
    return reading > held.kept and _publish(connection, held, content, held.rules, reading=reading)


def rule(connection: Connection, rules: Rules) -> bool:
    """Measure documents by these rules from now on. Whether that made a new edition."""
    connection.execute(_ENSURE)
    held = connection.execute(_LOCK).one()
    return _publish(connection, held, held.content, asdict(rules))


def _publish(
    connection: Connection, held: Row[Any], content: Json, rules: Json, *, reading: int | None = None
) -> bool:
    """A new edition where anything differs; none before the catalogue was read for the first time."""
    whole = json.dumps([content, rules], sort_keys=True)
    measure = hashlib.blake2b(whole.encode(), digest_size=16).digest()
    is_read = reading is not None or held.is_read
    changed = is_read and measure != bytes(held.measure)
    connection.execute(
        _KEEP,
        {
            "content": json.dumps(content),
            "rules": json.dumps(rules),
            "measure": measure if is_read else b"",
            "edition": held.edition + changed,
            "reading": reading,
        },
    )
    return changed


_AGE = text("SELECT extract(epoch FROM clock_timestamp() - read_at)::float8 FROM catalogue")


def age(connection: Connection) -> float | None:
    """Seconds since it was read; None: never."""
    seconds: float | None = connection.scalar(_AGE)
    return seconds


NEVER_READ = Catalogue(0, {}, {})
_latest: tuple[tuple[int, bytes], Catalogue] = (0, b""), NEVER_READ


def current(connection: Connection) -> Catalogue:
    """The edition in force, kept in this process for as long as it is. Edition 0 was never read."""
    global _latest
    row = connection.execute(_MEASURE).one_or_none()
    if row is None or not row.edition:
        return NEVER_READ
    which, held = _latest
    if which != (row.edition, bytes(row.measure)):
        row = connection.execute(_CONTENT).one()
        held = parsed(row.edition, row.content, row.rules)
        _latest = (row.edition, bytes(row.measure)), held
    return held
