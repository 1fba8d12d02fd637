"""The door for operators in a browser: `/billing/console`.

Plain pages, made here, that work without a script. What they show and do is `operations`; a page only writes
it down as HTML. `access` lets operators in and guards every action, `pages` is what all pages share, and each
other module is one of them. Without BILLING_CONSOLE_USERS, and without a host that says who its operators
are, the console does not exist.
"""

from __future__ import annotations

from flask import Blueprint, Flask

from billing.console import (
    access,
    audit,
    consumers,
    doctor,
    inbox,
    overview,
    pages,
    plans,
    style,
    tenants,
)
from billing.console.access import WhoIsIt
from billing.web import answers
from billing.wiring import Billing

PAGES = (
    *(overview.page, inbox.page, tenants.page, plans.page, consumers.page, audit.page, doctor.page),
    style.page,
)


def mount(
    app: Flask,
    billing: Billing,
    *,
    who: WhoIsIt | None = None,
    own_app: bool = False,
    url_prefix: str | None = None,
) -> None:
    """Put the console into `app` after the service, if anybody may use it.

    `who` says which operator a request comes from, where the app that it is mounted in knows that; it is asked
    in place of our own sign-in.
    """
    if not (who or billing.settings.billing_console_users):
        return
    blueprint = Blueprint("billing_console", __name__, template_folder="templates")
    if not own_app:
        answers.hooks(blueprint)
    pages.prepare(blueprint)
    access.prepare(blueprint, who)
    for page in PAGES:
        blueprint.register_blueprint(page)
    app.register_blueprint(blueprint, url_prefix=f"{url_prefix or ''}/billing/console")
