"""The door for operators at a terminal: `flask billing …`."""

from __future__ import annotations

from flask import Flask

from billing.commands import (
    audit,
    console,
    doctor,
    feed,
    inbox,
    listen,
    overrides,
    plans,
    reconcile,
    tenants,
    tokens,
)
from billing.commands.base import group

__all__ = [
    "audit",
    "console",
    "doctor",
    "feed",
    "inbox",
    "install",
    "listen",
    "overrides",
    "plans",
    "reconcile",
    "tenants",
    "tokens",
]


def install(app: Flask) -> None:
    """Give the app its commands."""
    app.cli.add_command(group)
