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
def password(name: str, role: str) -> None:
    """Print the entry of NAME for BILLING_CONSOLE_USERS. Entries are separated by commas.

    The password is asked for. Whose entry changes is signed out.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._@-]{0,62}", name):
        raise click.BadParameter("must be lower-case letters, digits, '.', '_', '@' and '-'", param_hint="NAME")
    given = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    if len(given) < SHORTEST:
        raise click.UsageError(f"The password must be at least {SHORTEST} characters.")
    click.echo(f"{name}:{generate_password_hash(given, HASHED)}:{role}")
