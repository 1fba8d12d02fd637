"""Who comes to the Portal: a customer, by a session that ends after five minutes without a visit.

A view that is decorated with `guest` gets them as its first argument, which says what is theirs and what they
are offered, and where they go when they are done.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from flask import render_template, request

from sandbox import bills
from sandbox.errors import Refusal
from sandbox.pages.visits import Answer, Gone, no_page, see, visit
from sandbox.resources import customers, portal
from sandbox.store import Json, Store

UNUSED_SECONDS = 300


@dataclass(frozen=True)
class Guest:
    """A customer, as the session they came by lets them in."""

    store: Store
    token: str
    page: Json
    session: Json
    customer: Json
    features: Json

    def offered(self, feature: str) -> bool:
        return bool(self.features[feature]["enabled"]) and not self.customer.get("deleted")

    def need(self, feature: str) -> None:
        if not self.offered(feature):
            url = self.session["return_url"]
            raise Gone("This is not offered here", "Go back to where you came from.", 403, url)

    def own(self, kind: str, id: str) -> Json:
        """A thing of this customer; nobody else's is a page."""
        thing = self.store.collection(kind).get(id)
        if thing is None or thing["customer"] != self.customer["id"]:
            raise no_page()
        return thing

    def subscription(self, id: str) -> Json:
        subscription = self.own("subscription", id)
        if subscription["status"] in (*bills.ENDED, "incomplete"):
            url = self.session["return_url"]
            raise Gone("There is nothing to change", "This subscription is over, or has not begun.", 409, url)
        return subscription

    def subscriptions(self) -> list[Json]:
        """Those that are not over, newest first."""
        every = self.store.collection("subscription").values()
        mine = [
            one for one in every if one["customer"] == self.customer["id"] and one["status"] not in bills.ENDED
        ]
        return mine[::-1]

    @property
    def task(self) -> Json | None:
        """What the session was opened for, until that is done."""
        return None if self.page.get("done") else self.session["flow"]

    @property
    def has_left(self) -> bool:
        """What the session was opened for is done, and that led away from here."""
        flow = self.session["flow"]
        return bool(flow) and not self.task and flow["after_completion"]["type"] != "portal_homepage"

    def shown(self, template: str, refusal: Refusal | None = None, **values: Any) -> Answer:
        page = render_template(
            template, guest=self, session=self.session, error=str(refusal or ""), given=request.form, **values
        )
        return page, refusal.status if refusal else 200

    def done(self, told: str, *tasks: str) -> Answer:
        """On to the overview, or wherever the task that is done by this leads."""
        if self.task and self.task["type"] in tasks:
            self.page["done"] = True
        if self.has_left:
            return see("portal.left", token=self.token)
        return see("portal.overview", token=self.token, told=told)


def guest(view: Callable[..., Answer]) -> Callable[..., Answer]:
    @visit
    @wraps(view)
    def entered(store: Store, token: str, **names: str) -> Answer:
        page, now = store.collection(portal.PAGE).get(token), store.now()
        if not page:
            raise no_page()
        session = page["session"]
        if now - page["seen"] > UNUSED_SECONDS:
            advice = "Go back to where you came from and ask for a new one."
            raise Gone("This link has expired", advice, 410, session["return_url"])
        page["seen"] = now
        customer = store.find(customers.KIND, session["customer"])
        features = store.find(portal.CONFIGURATION, session["configuration"])["features"]
        visitor = Guest(store, token, page, session, customer, features)
        if visitor.has_left and request.endpoint != "pages.portal.left":  # pressed twice, or gone back to
            return see("portal.left", token=token)
        return view(visitor, **names)

    return entered
