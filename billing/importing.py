"""The verb of taking over customers that Stripe had before we came: whose they are is read, never guessed.

Their metadata says it, or a file that somebody has made; no e-mail address ever does. A claim is refused where
anything speaks for another tenant or another customer, and two that contradict each other are refused both.
Each link is made as `tenants link` makes it, and is in the trail; so all of it may be done again at any time.
"""

from __future__ import annotations

import csv
import io
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import structlog

from billing import checkouts, customers, enrolling, state, sync
from billing.audit import By
from billing.budget import Budget
from billing.db import SYSTEM, Database
from billing.errors import (
    AlreadyLinked,
    Busy,
    CheckoutUnderWay,
    CustomerNotFound,
    CustomerOfAnother,
    StripeFailed,
)
from billing.stripe_api import Reading, Stripe, pages

COLUMNS = ("tenant_id", "customer_id")
CUSTOMER = re.compile(r"cus_\w{1,250}", re.ASCII)
LONGEST = 255
MOST_FAULTS = 20
PAUSES = (1.0, 4.0, 10.0)  # seconds, between two tries of a page

Why = Literal[
    "names_no_tenant",  # its metadata has no tenant_id
    "unusable_tenant",  # …or one that cannot be a tenant's id
    "claimed_twice",  # several customers say that they are this tenant's
    "claims_two",  # the file gives one customer to several tenants
    "other_customer",  # the tenant has another one
    "other_tenant",  # the customer is another tenant's here
    "named_otherwise",  # its metadata names another tenant than the file
    "unknown_customer",  # Stripe knows it no more, or never did
    "checkout_under_way",  # the tenant is buying: again later
    "forgotten",  # the tenant was, and only `tenants link` brings it back
    "unlinked",  # somebody has taken this very customer from it, and only `tenants link` brings it back
    "not_answered",  # Stripe did not, or the database: again later
]
WHYS: tuple[Why, ...] = get_args(Why)
EXPECTED: frozenset[str] = frozenset({"names_no_tenant"})  # that is no fault of anybody's

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """A customer, and the tenant it is said to be; whether its own metadata says so, to the letter."""

    tenant_id: str
    customer: str
    is_said: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a claim: linked, so already, or not and why."""

    claim: Claim
    became: Literal["linked", "already", "refused"]
    why: Why | None = None
    is_told: bool = True  # or Stripe's customer does not say so yet; a worker goes on telling it


class Unreadable(Exception):
    """What is wrong with a file, line by line. Nothing of it was used."""

    def __init__(self, faults: list[str]) -> None:
        more = f" … and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        super().__init__("; ".join(faults[:MOST_FAULTS]) + more)


def from_file(content: bytes) -> list[Claim]:
    """The claims of a CSV, a tenant and a customer on each line. `Unreadable` if any line makes no sense."""
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except UnicodeDecodeError as e:
        raise Unreadable(["it is not UTF-8"]) from e
    except csv.Error as e:
        raise Unreadable([f"it is no CSV: {e}"]) from e
    faults, claims = [], []
    for number, line in enumerate(lines, start=1):
        given = [cell.strip() for cell in line]
        if not any(given) or (number == 1 and tuple(map(str.lower, given)) == COLUMNS):
            continue
        if len(given) != len(COLUMNS):
            faults.append(f"line {number} has {len(given)} columns, not tenant_id and customer_id")
        elif not is_usable(given[0]):
            faults.append(f"line {number} has no usable tenant_id")
        elif not CUSTOMER.fullmatch(given[1]):
            faults.append(f"line {number} has no customer_id like cus_…")
        else:
            claims.append(Claim(given[0], given[1]))
    if faults:
        raise Unreadable(faults)
    return claims


def from_metadata(stripe: Stripe, budget: Budget) -> Iterator[Claim]:
    """What the metadata of all customers at Stripe says; a tenant of "" where it says nothing."""

    def read(after: str | None) -> Reading:
        budget.spend("customers.list", "background")
        if (page := stripe.customers(after)) is None:  # the one to go on after has just been deleted
            raise StripeFailed("nonsense")
        return page

    for page in pages(partial(_patiently, read)):
        for thing in page.things:
            said = customers.named(thing) or ""
            yield Claim(said.strip(), str(thing.get("id")), is_said=said == said.strip())


def _patiently(read: Callable[[str | None], Reading], after: str | None) -> Reading:
    """One page of many thousands is not to be the end of all of them."""
    for pause in PAUSES:
        try:
            return read(after)
        except StripeFailed as e:
            log.warning("import.waits", reason=e.reason)
            time.sleep(pause)
    return read(after)


def is_usable(tenant_id: str) -> bool:
    """Whether it can be a tenant's id."""
    return 0 < len(tenant_id) <= LONGEST and tenant_id.isprintable()


def link(
    db: Database,
    stripe: Stripe,
    budget: Budget,
    claims: Iterable[Claim],
    *,
    source: str,
    look: bool,
    dry: bool = False,
) -> Iterator[Judged]:
    """Link every claim nothing speaks against; each is told as it is judged.

    With `look` Stripe is asked about each customer before: the claim came from elsewhere.
    """
    claims = list(dict.fromkeys(claims))
    of_tenant, of_customer = defaultdict(set), defaultdict(set)
    for one in claims:
        of_tenant[one.tenant_id].add(one.customer)
        of_customer[one.customer].add(one.tenant_id)
    for one in claims:
        why: Why | None = None
        if not one.tenant_id:
            why = "names_no_tenant"
        elif not is_usable(one.tenant_id):
            why = "unusable_tenant"
        if why:
            yield Judged(one, "refused", why)
            continue
        if len(of_tenant[one.tenant_id]) > 1:
            why = "claimed_twice"
        elif len(of_customer[one.customer]) > 1:
            why = "claims_two"
        try:
            yield _judged_here(db, one, why) or _linked(
                db, stripe, budget, one, source=source, look=look, dry=dry
            )
        except (StripeFailed, Busy):
            yield Judged(one, "refused", "not_answered")


def _judged_here(db: Database, one: Claim, contested: Why | None) -> Judged | None:
    """What our own links say of it, and then the other claims. None if nothing speaks against it."""
    with db.begin(SYSTEM) as connection:
        owner = customers.owners(connection, [one.customer]).get(one.customer)
        linked = customers.of(connection, one.tenant_id)
        is_buying = checkouts.is_under_way(connection, one.tenant_id)
        is_forgotten = state.is_forgotten(connection, one.tenant_id)
        was_unlinked = customers.was_unlinked(connection, one.tenant_id, one.customer)
    if owner == one.tenant_id:
        return Judged(one, "already")
    why: Why | None = None
    if owner:
        why = "other_tenant"
    elif linked:
        why = "other_customer"
    elif contested:
        why = contested
    elif is_forgotten:
        why = "forgotten"
    elif was_unlinked:
        why = "unlinked"
    elif is_buying:
        why = "checkout_under_way"
    return Judged(one, "refused", why) if why else None


def _linked(
    db: Database, stripe: Stripe, budget: Budget, one: Claim, *, source: str, look: bool, dry: bool
) -> Judged:
    by = By("command", f"imported from {source}")
    try:
        if look:
            enrolling.check(stripe, budget, one.tenant_id, one.customer, lane="background")
        if dry:
            return Judged(one, "linked")
        woken = sync.link(db, one.tenant_id, one.customer, by=by, hurried=False)
    except CustomerNotFound:
        return Judged(one, "refused", "unknown_customer")
    except CustomerOfAnother:
        return Judged(one, "refused", "named_otherwise")
    except AlreadyLinked:  # in this very moment
        return Judged(one, "refused", "other_tenant")
    except CheckoutUnderWay:
        return Judged(one, "refused", "checkout_under_way")
    if woken is None:
        return Judged(one, "refused", "other_customer")
    return Judged(one, "linked", is_told=_is_told(db, stripe, one))


def _is_told(db: Database, stripe: Stripe, one: Claim) -> bool:
    """Where its metadata says whose it is there is no more to say, unless we have a name or an e-mail."""
    try:
        if not one.is_said:
            return enrolling.try_to_tell(db, stripe, one.tenant_id)
        with db.begin(SYSTEM) as connection:
            kept = customers.profile(connection, one.tenant_id)
            if kept.customer == one.customer and not kept.given:
                return customers.told(connection, one.tenant_id, kept)
    except Busy:
        pass  # it is linked
    return False
