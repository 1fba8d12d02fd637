"""What gunicorn loads, before it forks: a service that must not run does not get as far as listening."""

from __future__ import annotations

import sys

from flask import Flask

from app import create_app
from billing import config
from billing.commands import doctor
from billing.config import SettingsError
from billing.db import SYSTEM, Database, UnsafeRole
from billing.errors import ServiceUnavailable


def load() -> Flask:
    """The app. A database that is away is no reason not to start: every route says so until it is back."""
    try:
        if sys.argv[1:3] == ["billing", "doctor"]:
            return patient()
        app = create_app()
        database: Database = app.extensions["billing"].db
        with database.begin(SYSTEM):
            pass
    except (SettingsError, UnsafeRole) as e:
        sys.exit(str(e))
    except ServiceUnavailable:
        app.logger.warning("the database is away; starting all the same")
    database.close()  # a connection must not be shared by the workers that are forked next
    return app


def patient() -> Flask:
    """For `flask billing doctor`, which looks at what nobody else could start with."""
    settings, faults = config.without_faults()
    app = create_app(settings)
    app.extensions[doctor.FAULTS] = faults
    return app


app = load()
