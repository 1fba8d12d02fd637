"""Acme Notes, a product that sells plans through the service: what `make run` shows at /demo.

`wsgi` is what gunicorn loads there, in place of the service's own: the service as it is, with these pages
beside it on the same origin. `witness` notes what passes on the way (returns, answers, webhooks) and changes
none of it, `pages` is the product and its backend, `ada` is who is signed in. All of it is kept in the memory
of one process and is gone with it. Nothing here knows the service's insides: it is asked over its routes.
"""

TENANT = "acme"
SERVICE_TOKEN = "DEMO_SERVICE_TOKEN"  # noqa: S105  # not the token: its name in the file that DEMO_SECRETS names
