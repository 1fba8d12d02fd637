"""What `make run` has gunicorn load in place of the service's own `wsgi:app`: the service, and /demo beside it.

Never on a dyno and never with a live key: importing this fails there, before anything of the service is loaded.
What is noted is in the memory of one process, so there must be one web process only.
"""

import os
from typing import TYPE_CHECKING

from sandbox.demo import place

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def load() -> "WSGIApplication":
    place.refuse_production(os.environ)
    from wsgi import app as service  # not before this place is known to be right

    return place.beside(service, os.environ)


app = load()
