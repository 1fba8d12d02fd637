"""What happens to customers at Stripe: random lives, told as events, and what Stripe would have answered when.

A `Buyer` acts on a sandbox's store by the sandbox's own operations, with no HTTP and a clock that is set; what
falls due on the way happens by itself. `LIVES` are the ways a subscription can go; most histories wander on for
a while after theirs. A `History` keeps every event with the instant it was made at, and the state Stripe was in
after each change: whoever asks sees what was true at that moment. The same seed lives the same life again.
"""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import sandbox.resources
from billing import events
from sandbox import life
from sandbox.errors import Refusal
from sandbox.resources import Call, customers, invoices, payment_methods, prices, products, subscriptions
from sandbox.resources.events import snapshot
from sandbox.store import Json, Store

DAY = 24 * 3600.0
START = 1_796_083_200.0  # 2026-12-01T00:00:00Z
ENDED = ("canceled", "incomplete_expired")


# ---- the record


@dataclass(frozen=True)
class Told:
    """An event, and when it was made: to the fraction of a second that Stripe does not tell."""

    at: float
    id: str
    type: str
    created: int
    body: bytes
    subscription: str | None  # whose snapshot it carries


@dataclass(frozen=True)
class State:
    """All there is of one customer at Stripe."""

    subscriptions: dict[str, Json] = field(default_factory=dict)
    items: dict[str, list[Json]] = field(default_factory=dict)  # of subscriptions that do not show them all
    invoices: dict[str, Json] = field(default_factory=dict)
    is_deleted: bool = False


def state_of(store: Store, customer: str) -> State:
    """What Stripe holds of the customer now; not to be kept while the store goes on."""
    with store.lock:
        mine = {s["id"]: s for s in store.collection("subscription").values() if s["customer"] == customer}
        return State(
            subscriptions=mine,
            items={
                id: [i for i in store.collection("subscription_item").values() if i["subscription"] == id]
                for id, subscription in mine.items()
                if subscription["items"]["has_more"]
            },
            invoices={i["id"]: i for i in store.collection("invoice").values() if i["customer"] == customer},
            is_deleted=bool(store.collection("customer")[customer].get("deleted")),
        )


class Recorder(Store):
    """A store of one customer that remembers how it stood after everything that happened."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.told: list[Told] = []
        self.states: list[tuple[float, State]] = []
        self.customer = ""

    @contextmanager
    def standing_at(self, instant: int) -> Iterator[None]:
        """Everything that happens does so in one of these."""
        with super().standing_at(instant):
            yield
            if self.customer:
                self.note(min(self.clock(), instant + 0.999))

    def note(self, at: float) -> None:
        at = max(at, self.states[-1][0]) if self.states else at
        last = self.states[-1][1] if self.states else State()
        now = state_of(self, self.customer)
        self.states.append((at, State(**{kind: kept(vars(last)[kind], vars(now)[kind]) for kind in vars(now)})))
        made = list(self.collection("event").values())
        self.collection("event").clear()
        self.told += [told(event, at) for event in made if event["type"] in events.USED]


def kept(before: Any, now: Any) -> Any:
    """A copy of what there is, which shares what has not changed since the last one."""
    if not isinstance(now, dict):
        return now
    return {id: before[id] if before.get(id) == thing else snapshot(thing) for id, thing in now.items()}


def told(event: Json, at: float) -> Told:
    """As a delivery carries it."""
    thing = event["data"]["object"]
    subscription = thing["id"] if thing["object"] == "subscription" else None
    return Told(at, event["id"], event["type"], event["created"], json.dumps(event).encode(), subscription)


@dataclass(frozen=True, eq=False)
class History:
    """One customer's life, from its first subscription to the last thing that happened."""

    life: str
    seed: int
    customer: str
    told: list[Told]
    states: list[tuple[float, State]]

    def at(self, moment: float) -> State:
        """What Stripe would have answered then."""
        place = bisect_right(self.states, moment, key=lambda noted: noted[0])
        return self.states[place - 1][1] if place else State()

    @property
    def end(self) -> State:
        """How it ended."""
        return self.states[-1][1]


# ---- what a customer does


class Clock:
    """Stripe's time, which passes when it is told to."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Shop:
    """What can be bought: two plans a month, one a year."""

    small: str
    large: str
    yearly: str


def open_shop(store: Store) -> Shop:
    product = products.create(Call(store, {"name": "Pro"}, ""))["id"]

    def sells(amount: int, interval: str) -> str:
        wanted = {
            "product": product,
            "currency": "eur",
            "unit_amount": amount,
            "recurring": {"interval": interval},
        }
        return str(prices.create(Call(store, wanted, ""))["id"])

    return Shop(sells(1000, "month"), sells(3000, "month"), sells(9000, "year"))


class Buyer:
    """A customer at Stripe, to whom things happen. Whatever Stripe refuses has not happened."""

    def __init__(self, store: Store, clock: Clock, shop: Shop, chance: random.Random) -> None:
        self.store = store
        self.clock = clock
        self.shop = shop
        self.chance = chance
        self.id: str = self.acts(customers.create, email="ada@acme.example")["id"]

    def acts(self, operation: Callable[..., Json], *ids: str, **given: Any) -> Json:
        """One call to the API, now."""
        with self.store.lock:
            life.catch_up(self.store)
            with self.store.standing_at(self.store.now()):
                with suppress(Refusal):
                    return operation(Call(self.store, given, ""), *ids)
        return {}

    def lets_pass(self, seconds: float) -> None:
        """Wait, while what is due falls due."""
        self.clock.now += seconds
        life.catch_up(self.store)

    def a_moment(self) -> None:
        """Less than a second, some seconds, or minutes: what is near enough to arrive out of order."""
        self.lets_pass(
            self.chance.choice((self.chance.uniform(0.05, 0.9), self.chance.uniform(0.5, 20), 120.0))
        )

    def takes_card(self, card: str = "pm_card_visa") -> None:
        """Pay by this card from now on."""
        method = self.acts(payment_methods.attach, card, customer=self.id)
        self.acts(customers.update, self.id, invoice_settings={"default_payment_method": method["id"]})

    def loses_card(self) -> None:
        self.takes_card("pm_card_chargeCustomerFail")

    def subscribes(self, **given: Any) -> str:
        wanted = {"customer": self.id, "items": [{"price": self.shop.small}], **given}
        return str(self.acts(subscriptions.create, **wanted).get("id"))

    def changes(self, subscription: str, **given: Any) -> None:
        self.acts(subscriptions.update, subscription, **given)

    def changes_item(self, subscription: str, **given: Any) -> None:
        first = self.store.find("subscription", subscription)["items"]["data"][0]
        self.changes(subscription, items=[{"id": first["id"], **given}])

    def adds_item(self, subscription: str) -> None:
        if not self.store.find("subscription", subscription)["items"]["has_more"]:
            self.changes(
                subscription, items=[{"price": self.chance.choice((self.shop.small, self.shop.large))}]
            )

    def removes_item(self, subscription: str) -> None:
        last = self.store.find("subscription", subscription)["items"]["data"][-1]
        self.changes(subscription, items=[{"id": last["id"], "deleted": True}])

    def cancels(self, subscription: str) -> None:
        self.acts(subscriptions.cancel, subscription)

    def settles(self, subscription: str) -> None:
        """Pay what is owed, by a card that works."""
        self.takes_card()
        self.acts(invoices.pay, self.store.find("subscription", subscription)["latest_invoice"])

    def leaves(self) -> None:
        self.acts(customers.delete, self.id)

    def living(self) -> list[str]:
        """Its subscriptions that have not ended."""
        mine = [s for s in self.store.collection("subscription").values() if s["customer"] == self.id]
        return [s["id"] for s in mine if s["status"] not in ENDED]


# ---- the ways a subscription can go


def trial(buyer: Buyer) -> None:
    subscription = buyer.subscribes(trial_period_days=7)
    buyer.a_moment()
    buyer.changes_item(subscription, quantity=2)
    buyer.lets_pass(8 * DAY)


def trial_ended_early(buyer: Buyer) -> None:
    subscription = buyer.subscribes(trial_period_days=14)
    buyer.a_moment()
    buyer.changes(subscription, trial_end="now")
    buyer.a_moment()


def trial_without_a_card(buyer: Buyer) -> None:
    nobody = {"end_behavior": {"missing_payment_method": "pause"}}
    buyer.acts(customers.update, buyer.id, invoice_settings={"default_payment_method": None})
    subscription = buyer.subscribes(trial_period_days=7, trial_settings=nobody)
    buyer.lets_pass(7 * DAY + 5)
    buyer.takes_card()
    buyer.acts(subscriptions.resume, subscription)
    buyer.a_moment()


def upgrade(buyer: Buyer) -> None:
    subscription = buyer.subscribes()
    buyer.a_moment()
    buyer.changes_item(subscription, price=buyer.shop.large)
    buyer.a_moment()
    buyer.changes_item(subscription, quantity=buyer.chance.randint(2, 9))
    buyer.a_moment()


def to_yearly(buyer: Buyer) -> None:
    subscription = buyer.subscribes()
    buyer.a_moment()
    buyer.changes_item(subscription, price=buyer.shop.yearly)
    buyer.a_moment()


def recovery(buyer: Buyer) -> None:
    subscription = buyer.subscribes()
    buyer.loses_card()
    buyer.lets_pass(31 * DAY + 7200)
    if buyer.chance.random() < 0.5:
        buyer.lets_pass(3 * DAY)
    buyer.settles(subscription)
    buyer.a_moment()


def still_past_due(buyer: Buyer) -> None:
    buyer.subscribes()
    buyer.loses_card()
    buyer.lets_pass((31 + buyer.chance.choice((1, 4, 9))) * DAY)


def given_up(buyer: Buyer) -> None:
    buyer.store.after_retries = buyer.chance.choice(("canceled", "past_due"))
    buyer.subscribes()
    buyer.loses_card()
    buyer.lets_pass(58 * DAY)


def unpaid_then_paid(buyer: Buyer) -> None:
    buyer.store.after_retries = "unpaid"
    subscription = buyer.subscribes()
    buyer.loses_card()
    buyer.lets_pass(58 * DAY)
    buyer.settles(subscription)
    buyer.a_moment()


def cancel_at_period_end(buyer: Buyer) -> None:
    subscription = buyer.subscribes()
    for wish in (True, False, True):
        buyer.a_moment()
        buyer.changes(subscription, cancel_at_period_end=wish)
    buyer.lets_pass(buyer.chance.choice((60, 32 * DAY)))


def cancel_at(buyer: Buyer) -> None:
    subscription = buyer.subscribes()
    buyer.a_moment()
    buyer.changes(subscription, cancel_at=int(buyer.clock.now + 10 * DAY))
    buyer.a_moment()
    buyer.changes_item(subscription, quantity=3)
    buyer.lets_pass(buyer.chance.choice((60, 11 * DAY)))


def pause_collection(buyer: Buyer) -> None:
    subscription = buyer.subscribes()
    buyer.a_moment()
    behavior = buyer.chance.choice(("void", "mark_uncollectible", "keep_as_draft"))
    resumes = buyer.chance.choice((None, int(buyer.clock.now + 33 * DAY)))
    buyer.changes(subscription, pause_collection={"behavior": behavior, "resumes_at": resumes})
    buyer.lets_pass(buyer.chance.choice((1.5, 32 * DAY, 34 * DAY)))
    buyer.changes(subscription, pause_collection=None)


def incomplete_expired(buyer: Buyer) -> None:
    buyer.subscribes(payment_behavior="default_incomplete")
    buyer.lets_pass(DAY)


def incomplete_paid(buyer: Buyer) -> None:
    subscription = buyer.subscribes(payment_behavior="default_incomplete")
    buyer.a_moment()
    buyer.settles(subscription)


def two_at_once(buyer: Buyer) -> None:
    first, second = buyer.subscribes(), buyer.subscribes(items=[{"price": buyer.shop.large, "quantity": 2}])
    buyer.a_moment()
    buyer.changes_item(first, quantity=4)
    buyer.changes_item(second, quantity=5)
    buyer.a_moment()
    buyer.cancels(buyer.chance.choice((first, second)))


def subscribed_again(buyer: Buyer) -> None:
    buyer.cancels(buyer.subscribes())
    buyer.a_moment()
    buyer.subscribes(items=[{"price": buyer.shop.large}])
    buyer.a_moment()


def item_removed(buyer: Buyer) -> None:
    subscription = buyer.subscribes()
    buyer.a_moment()
    buyer.adds_item(subscription)
    buyer.a_moment()
    buyer.removes_item(subscription)


def customer_deleted(buyer: Buyer) -> None:
    subscription = buyer.subscribes()
    buyer.a_moment()
    buyer.changes_item(subscription, quantity=2)
    buyer.a_moment()
    buyer.leaves()


def renewals(buyer: Buyer) -> None:
    buyer.subscribes()
    buyer.lets_pass(65 * DAY)


def flapping(buyer: Buyer) -> None:
    """There and back again, within 0.2 to 300 seconds."""
    subscription = buyer.subscribes()
    for _ in range(buyer.chance.randint(3, 7)):
        buyer.lets_pass(0.2 * 1500 ** buyer.chance.random())
        buyer.changes_item(subscription, quantity=buyer.chance.choice((1, 2, 3)))


def wavering(buyer: Buyer) -> None:
    """There and back again, faster than anybody can ask."""
    subscription = buyer.subscribes()
    buyer.lets_pass(buyer.chance.uniform(5, 20))
    for number in range(buyer.chance.randint(2, 4)):
        buyer.lets_pass(buyer.chance.uniform(0.2, 4))
        buyer.changes_item(subscription, quantity=2 - number % 2)


def burst(buyer: Buyer) -> None:
    """Many changes in one second."""
    subscription = buyer.subscribes()
    buyer.lets_pass(buyer.chance.uniform(0, 3))
    for quantity in buyer.chance.sample(range(1, 9), 4):
        buyer.changes_item(subscription, quantity=quantity)
        buyer.lets_pass(0.1)


def many_items(buyer: Buyer) -> None:
    """More than Stripe shows at once."""
    subscription = buyer.subscribes(items=[{"price": buyer.shop.small} for _ in range(11)])
    buyer.a_moment()
    buyer.changes_item(subscription, quantity=7)


COMMON = (
    *(trial, trial_ended_early, trial_without_a_card, upgrade, to_yearly, recovery, still_past_due, given_up),
    *(unpaid_then_paid, cancel_at_period_end, cancel_at, pause_collection, incomplete_expired, incomplete_paid),
    *(two_at_once, subscribed_again, item_removed, customer_deleted, renewals),
)
RARE = (flapping, wavering, burst, many_items)
LIVES = COMMON + RARE


def wander(buyer: Buyer) -> None:
    """Something or other."""
    subscription = buyer.chance.choice(buyer.living() or [""])
    if not subscription:
        buyer.subscribes()
        return
    steps: list[Callable[[], None]] = [
        lambda: buyer.changes_item(subscription, quantity=buyer.chance.randint(1, 3)),
        lambda: buyer.changes_item(
            subscription, price=buyer.chance.choice((buyer.shop.small, buyer.shop.large))
        ),
        lambda: buyer.changes(subscription, cancel_at_period_end=buyer.chance.random() < 0.5),
        lambda: buyer.adds_item(subscription),
        lambda: buyer.removes_item(subscription),
        lambda: buyer.settles(subscription),
        lambda: buyer.cancels(subscription),
        lambda: buyer.lets_pass(buyer.chance.choice((600, 7200, 31 * DAY))),
        buyer.leaves,
    ]
    buyer.chance.choices(steps, weights=(6, 4, 4, 2, 2, 2, 1, 2, 0.3))[0]()


# ---- histories


def a_history(
    seed: int, *, lives: Sequence[Callable[[Buyer], None]] = LIVES, steps: int = 4, start: float = START
) -> History:
    """A life in a store of its own; the seed says which, and for how many steps it wanders on."""
    chance = random.Random(seed)
    clock = Clock(start + chance.random())
    store = Recorder(clock)
    with same_names(chance):
        buyer = Buyer(store, clock, open_shop(store), chance)
        buyer.takes_card()
        store.collection("event").clear()
        store.customer = buyer.id
        lived = lives[seed % len(lives)]
        lived(buyer)
        for _ in range(chance.randint(0, steps)):
            buyer.a_moment()
            wander(buyer)
    return History(lived.__name__, seed, buyer.id, store.told, store.states)


@contextmanager
def same_names(chance: random.Random) -> Iterator[None]:
    """Ids that the seed decides, so that a history is the same whenever it is told."""
    before = vars(sandbox.resources)["secrets"]
    vars(sandbox.resources)["secrets"] = chance
    try:
        yield
    finally:
        vars(sandbox.resources)["secrets"] = before
