"""Who is signed in: Ada, owner of Acme. A product's login would make her token; here the demo does.

It says what the service's settings ask of a token, and can be signed only where they name a shared secret.
"""

import time
from collections.abc import Mapping

import jwt

from sandbox.demo import TENANT

TOKEN_DAYS = 30


def token(environ: Mapping[str, str]) -> str | None:
    """Her token, good for thirty days; None where somebody else has the key."""
    secret = environ.get("JWT_SECRET_KEY")
    if not secret:
        return None
    now = int(time.time())
    wanted = {
        "iss": environ.get("JWT_ISSUER", ""),
        "aud": first(environ.get("JWT_AUDIENCE", "")),
        "azp": first(environ.get("JWT_AUTHORIZED_PARTIES", "")),
        environ.get("JWT_ROLES_CLAIM", "roles"): first(environ.get("BILLING_MANAGER_ROLES", "")),
    }
    claims = {"sub": "ada", "iat": now, "exp": now + TOKEN_DAYS * 86400}
    claims |= {name: value for name, value in wanted.items() if value}
    claims |= {
        environ.get("JWT_TENANT_CLAIM", "tenant_id"): TENANT
    }  # a dotted name is looked for as it is, too
    return jwt.encode(claims, secret, "HS256")


def first(comma_list: str) -> str:
    return comma_list.partition(",")[0].strip()
