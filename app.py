"""The service's table of contents: settings in, a Flask app out."""

from __future__ import annotations

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from billing import commands, config, console, telemetry, web, wiring
from billing.config import Settings
from billing.stripe_api import Stripe


def create_app(settings: Settings | None = None, stripe: Stripe | None = None) -> Flask:
    """Nothing is connected here: the app may be made before a fork, and while the database is away."""
    settings = settings or config.load()
    app = Flask("billing", static_folder=None)
    telemetry.configure_logging()
    telemetry.instrument(app)
    billing = wiring.build(settings, stripe)
    web.mount(app, billing, own_app=True)
    console.mount(app, billing, own_app=True)
    commands.install(app)
    if hops := settings.trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops)  # type: ignore[method-assign]  # Flask's own recipe
    return app
