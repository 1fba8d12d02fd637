"""The doors for HTTP callers, gathered in one blueprint."""

from __future__ import annotations

from flask import Blueprint, Flask

from billing.web import answers, changes, checkout, entitlements, health, openapi, portal, tenants, webhooks
from billing.wiring import Billing

DOORS = (
    portal.blueprint,
    checkout.blueprint,
    entitlements.blueprint,
    tenants.blueprint,
    changes.blueprint,
    webhooks.blueprint,
    health.blueprint,
    openapi.blueprint,
)


def mount(app: Flask, billing: Billing, *, own_app: bool = False, url_prefix: str | None = None) -> None:
    """Put the service into `app`: our own, where every answer is ours, or one that has other routes as well."""
    blueprint = _gathered(app)
    answers.hooks(app if own_app else blueprint)
    billing.identity.install(app)
    app.extensions["billing"] = billing
    app.register_blueprint(blueprint, url_prefix=url_prefix)


def contract() -> str:
    """What `GET /api/openapi.json` answers, without settings or a database."""
    app = Flask("contract", static_folder=None)
    app.register_blueprint(_gathered(app))
    return openapi.written(app)


def _gathered(app: Flask) -> Blueprint:
    app.url_map.converters["tenant"] = tenants.TenantConverter
    blueprint = Blueprint("billing", __name__)
    for door in DOORS:
        blueprint.register_blueprint(door)
    return blueprint
