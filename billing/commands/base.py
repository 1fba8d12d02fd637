"""What the commands share: their group, what they are given, and how they write a moment."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from billing import errors
from billing.audit import By
from billing.operations import cures
from billing.operations.base import plain
from billing.wiring import Billing

ACTOR = "command"
REASON = click.option("--reason", required=True, help="Why; it stays in the trail.")
REASONED = click.option("--reason", default="by command", help="Why, for the trail.")
FOUND = 1  # the exit code of a command that has found a problem
AS_JSON = click.option("--json", "as_json", is_flag=True, help="For programs to read.")


class Commands(AppGroup):
    """What goes wrong is told in a sentence, and with the short word the logs have for it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command the operator named."""
        try:
            with logs_aside():
                return super().invoke(ctx)
        except errors.BillingError as e:
            raise click.ClickException(f"{cures.told(e)} ({e.outcome})") from e


@contextmanager
def logs_aside() -> Iterator[None]:
    """What is printed is the command's answer: its log lines go where errors go."""
    moved = [
        (handler, handler.setStream(sys.stderr))
        for handler in logging.getLogger().handlers
        if type(handler) is logging.StreamHandler and handler.stream is sys.stdout
    ]
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream or sys.stdout)


group = Commands("billing", help="Look after the inbox, the tenants and the feed.")


def service() -> Billing:
    """What this process holds."""
    held: Billing = current_app.extensions["billing"]
    return held


def by(reason: str) -> By:
    """Whoever has a terminal, for the trail."""
    if not reason.strip():
        raise click.BadParameter("must say why", param_hint="--reason")
    return By(ACTOR, reason.strip())


def shown(value: Any, as_json: bool, lines: Iterable[str]) -> None:
    """Print what an operation answered: for programs whole, for people in these lines."""
    if as_json:
        click.echo(json.dumps(plain(value)))
    else:
        for line in lines:
            click.echo(line)


def minute(at: datetime | None) -> str | None:
    """To be read by people."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at else None


def second(at: datetime | None) -> str | None:
    """To be read by programs."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if at else None


@contextmanager
def progress(label: str) -> Iterator[Callable[[int], None]]:
    """A bar for eyes at a terminal."""
    bar: Any = None

    def tell(total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = click.progressbar(length=total, label=label, file=sys.stderr)
            bar.__enter__()
        bar.update(1)

    if not sys.stderr.isatty():
        yield lambda total: None
        return
    try:
        yield tell
    finally:
        if bar:
            bar.__exit__(None, None, None)
