"""`GET /healthz`: the process runs. `GET /readyz`: it can do its work, too."""

from __future__ import annotations

from typing import Literal

from flask import Blueprint
from pydantic import BaseModel

from billing import errors, schema
from billing.db import SYSTEM
from billing.telemetry import observed
from billing.web.contract import checked, service

blueprint = Blueprint("health", __name__)


class Health(BaseModel):
    """Nothing to report."""

    status: Literal["ok"]


@blueprint.get("/healthz")
@observed("healthz")
@checked()
def check_health() -> Health:
    """Is the process alive?"""
    return Health(status="ok")


@blueprint.get("/readyz")
@observed("readyz")
@checked()
def check_readiness() -> Health:
    """Is the database reachable and migrated?"""
    with service().db.begin(SYSTEM) as connection:
        if not schema.is_current(connection):
            raise errors.ServiceUnavailable("schema")
    return Health(status="ok")
