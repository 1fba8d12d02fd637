"""A shop in a store of its own: what the tests of lifecycles sell, to whom, and what was told of it.

No HTTP and a clock that stands still until it is advanced, so a history takes milliseconds.
"""

from typing import Any

from sandbox import life
from sandbox.entitlements import holding_of
from sandbox.resources import (
    Call,
    customers,
    features,
    invoices,
    payment_methods,
    prices,
    products,
    subscriptions,
)
from sandbox.store import Json, Store

DAY = 24 * 3600
START = 1_796_083_200  # 2026-12-01T00:00:00Z


class Shop:
    def __init__(self) -> None:
        self.store = Store(clock=lambda: float(START))
        self.opens("Pro")
        self.price = self.sells(interval="month")
        self.customer = customers.create(self.call(email="ada@acme.example"))["id"]
        self.takes("pm_card_visa")

    def call(self, **params: Any) -> Call:
        return Call(self.store, params, "http://stripe.test")

    def opens(self, name: str) -> None:
        """Another product, which is what is sold from now on."""
        self.product: str = products.create(self.call(name=name))["id"]

    def sells(self, amount: int = 1000, **recurring: Any) -> str:
        return self.priced(amount, recurring=recurring)

    def sells_once(self, amount: int) -> str:
        return self.priced(amount)

    def priced(self, amount: int, **more: Any) -> str:
        call = self.call(product=self.product, currency="eur", unit_amount=amount, **more)
        return str(prices.create(call)["id"])

    def rename(self, price: str, nickname: str) -> None:
        prices.update(self.call(nickname=nickname), price)

    def takes(self, card: str) -> None:
        """The customer pays by this card from now on."""
        method = payment_methods.attach(self.call(customer=self.customer), card)["id"]
        settings = {"default_payment_method": method}
        customers.update(self.call(invoice_settings=settings), self.customer)

    def adds(self, lookup_key: str) -> str:
        """A new feature of the product. Answers the attachment, which `removes` takes."""
        feature = features.create(self.call(lookup_key=lookup_key, name=lookup_key))["id"]
        return str(features.attach(self.call(entitlement_feature=feature), self.product)["id"])

    def removes(self, attachment: str) -> None:
        features.detach(self.call(), self.product, attachment)

    def entitlements(self) -> set[str]:
        """The lookup keys of what the customer may use."""
        return {active["lookup_key"] for active in holding_of(self.store, self.customer)["active"]}

    def subscribe(self, **params: Any) -> Json:
        given = {"customer": self.customer, "items": [{"price": self.price}], **params}
        return subscriptions.create(self.call(**given))

    def update(self, subscription: Json, **params: Any) -> Json:
        return subscriptions.update(self.call(**params), subscription["id"])

    def resume(self, subscription: Json) -> Json:
        return subscriptions.resume(self.call(), subscription["id"])

    def pay(self, invoice: str) -> Json:
        return invoices.pay(self.call(), invoice)

    def latest_invoice(self, subscription: Json) -> Json:
        return self.store.find("invoice", subscription["latest_invoice"])

    def pass_days(self, days: float) -> None:
        life.advance(self.store, int(days * DAY))

    def told(self, since: int = 0) -> list[str]:
        """The types of all events, or of those since an instant."""
        return [event["type"] for event in self.events() if event["created"] >= since]

    def events(self, type: str | None = None) -> list[Json]:
        events = self.store.collection("event").values()
        return [event for event in events if type in (None, event["type"])]
