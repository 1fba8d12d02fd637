"""`flask billing console …`: who may use the console."""

from __future__ import annotations

import re

import click
from werkzeug.security import generate_password_hash

from billing.commands.base import Commands, group

HASHED = "scrypt:32768:8:3"
SHORTEST = 12

console = Commands("console", help="Who may use the console.")
group.add_command(console)


@console.command("password")
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "operator"]), default="viewer", show_default=True)
@click.password_option(help="Asked for where it is not given, which is better.")
def password(name: str, role: str, password: str) -> None:
    """Print the entry of NAME for BILLING_CONSOLE_USERS. Entries are separated by commas.

    Whose entry changes is signed out.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._@-]{0,62}", name):
        raise click.BadParameter("must be lower-case letters, digits, '.', '_', '@' and '-'", param_hint="NAME")
    if len(password) < SHORTEST:
        raise click.BadParameter(f"must be at least {SHORTEST} characters", param_hint="--password")
    click.echo(f"{name}:{generate_password_hash(password, HASHED)}:{role}")
