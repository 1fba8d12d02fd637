"""A shop in a store of its own: what the tests of lifecycles sell, to whom, and what was told of it.

No HTTP and a clock that stands still until it is advanced, so a history takes milliseconds.
"""

from typing import Any

from sandbox import life
from sandbox.resources import Call, customers, invoices, payment_methods, prices, products, subscriptions
from sandbox.store import Json, Store

DAY = 24 * 3600
START = 1_796_083_200  # 2026-12-01T00:00:00Z


class Shop:
    def __init__(self) -> None:
        self.store = Store(clock=lambda: float(START))
        self.product = products.create(self.call(name="Pro"))["id"]
        self.price = self.sells(interval="month")
        self.customer = customers.create(self.call(email="ada@acme.example"))["id"]
        self.takes("pm_card_visa")

    def call(self, **params: Any) -> Call:
        return Call(self.store, params, "http://stripe.test")

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
