"""One visit to a page: what was due has happened, and nobody else changes the store meanwhile.

A view that is decorated with `visit` gets the store as its first argument. It may raise `Gone`, which is a
page, too.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue as Answer

from sandbox import life
from sandbox.resources import Call
from sandbox.store import Json, Store

__all__ = ["Answer", "Gone", "call", "gone", "no_page", "see", "visit"]

View = Callable[..., Answer]


class Gone(Exception):
    """There is nothing here for the visitor: a heading, a sentence that leads on, and perhaps a way out."""

    def __init__(self, heading: str, explanation: str, status: int = 404, url: str | None = None) -> None:
        super().__init__(heading)
        self.heading = heading
        self.explanation = explanation
        self.status = status
        self.url = url


def gone(why: Gone) -> Answer:
    return render_template("gone.html", why=why), why.status


def no_page() -> Gone:
    return Gone("No such page", "This address was never given out, or was forgotten since.")


def visit(view: View) -> View:
    @wraps(view)
    def visited(**names: str) -> Answer:
        store: Store = g.store
        with store.lock:
            life.catch_up(store)
            try:
                return view(store, **names)
            finally:
                if request.method == "POST":  # what was refused may have happened in part, as over the API
                    store.save()

    return visited


def call(store: Store, params: Json | None = None) -> Call:
    """What an operation of /v1 works with."""
    return Call(store, params or {}, store.public_url)


def see(view: str, **values: Any) -> Answer:
    """After a post: that page, by GET."""
    return redirect(url_for(f"pages.{view}", **values), 303)
