"""Where the sandbox does not play: beside production, and for the pages of strangers.

`refuse_production` ends a start where real keys or a database of another machine are at hand. `stranger`
finds a call that no page or program of this machine would make: a name that only a hostile DNS leads here,
or what another site's page sends. Nobody's key makes up for that: the sandbox's own is known to everybody.
"""

from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from flask import Request

from sandbox.account import is_live

KEYS = ("STRIPE_SECRET_KEY", "STRIPE_KEY")
DATABASES = ("DATABASE_URL", "MIGRATIONS_DATABASE_URL")

HERE = ("localhost", "127.0.0.1", "::1")


class CannotStart(Exception):
    """One sentence that says why, and what to do."""


def refuse_production(key: str, environ: Mapping[str, str]) -> None:
    if "DYNO" in environ:
        raise CannotStart("This is a Heroku dyno: the sandbox only runs on a developer's machine.")
    for name in KEYS:
        if is_live(environ.get(name, "")):
            raise CannotStart(f"{name} holds a live key: unset it before starting the sandbox.")
    if is_live(key):
        raise CannotStart("The sandbox takes no live key: choose one that starts with sk_test_.")
    for name in DATABASES:
        if environ.get(name) and not is_of_this_machine(environ[name], environ):
            raise CannotStart(
                f"{name} names a database on another machine: unset it, or name one of this machine."
            )


def is_of_this_machine(database: str, environ: Mapping[str, str]) -> bool:
    """Every host it names, in whatever way, or the one libpq would take where it names none."""
    try:
        hosts = [*hosts_of(database)] or [*each(environ.get("PGHOST", ""), environ.get("PGSERVICE", ""))]
        hosts += each(environ.get("PGHOSTADDR", ""))
    except ValueError:  # brackets that do not close, and the like
        return False
    return all(host.startswith("/") or host.lower() in HERE for host in hosts)


def hosts_of(database: str) -> Iterator[str]:
    _, separator, rest = database.partition("://")
    url = urlsplit(f"//{rest}")
    if not separator or "@" in url.path + url.query + url.fragment:
        raise ValueError("no address, or one with a password that hides its host")
    parameters = parse_qsl(url.query)
    yield from each(url.netloc.rpartition("@")[2])
    yield from each(*(value for name, value in parameters if name in ("host", "hostaddr", "service")))


def each(*lists: str) -> Iterator[str]:
    """The hosts of comma lists; a service, whose host is told elsewhere, passes for a foreign one."""
    places = [unquote(place) for places in lists for place in places.split(",")]
    return (host for place in places if (host := host_of(place)))


def host_of(place: str) -> str:
    """Without a port; an IPv6 address may come without its brackets."""
    if place.startswith("/") or (place.count(":") > 1 and not place.startswith("[")):
        return place
    return urlsplit(f"//{place}").hostname or ""


def stranger(request: Request, public_url: str) -> str | None:
    """Why this call is not answered, or None. Another site may link to the pages, and do nothing else."""
    name = hostname(f"//{request.host}")
    if name is None or name not in (*HERE, hostname(public_url)):
        return "The sandbox answers as localhost or 127.0.0.1 and by no other name."
    may_be_linked_to = request.method in ("GET", "HEAD") and not request.path.startswith("/v1/")
    if not may_be_linked_to and comes_from_elsewhere(request, public_url):
        return "Another site sent this: use the sandbox's own pages."
    return None


def comes_from_elsewhere(request: Request, public_url: str) -> bool:
    """Whether a page of another origin made a browser send this. Programs say nothing of the kind."""
    if site := request.headers.get("Sec-Fetch-Site"):
        return site not in ("same-origin", "none")
    # older browsers say only this, and all of them where a public address is neither localhost nor https
    address = urlsplit(public_url)
    ours = (f"http://{request.host}", f"{address.scheme}://{address.netloc}")
    return request.headers.get("Origin", ours[0]) not in ours


def hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
