"""Where the demo may stand: beside the service, on a developer's machine, and nowhere else."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from sandbox.account import is_live
from sandbox.demo import pages
from sandbox.demo.witness import Facts, Witness

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

AT = "/demo"


class NotHere(Exception):
    """One sentence that says why the demo is not for this place."""


def refuse_production(environ: Mapping[str, str]) -> None:
    if "DYNO" in environ:
        raise NotHere("This is a Heroku dyno: the demo only runs on a developer's machine.")
    for name, value in environ.items():
        if is_live(value.strip()):
            raise NotHere(f"{name} holds a live key: use a test key here, or unset it.")


def beside(service: "WSGIApplication", environ: Mapping[str, str]) -> "WSGIApplication":
    """The service, overheard and otherwise as it is, with the demo at /demo."""
    facts = Facts()
    witness, demo = Witness(service, facts), pages.create_app(service, facts, environ)

    def application(request: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = request.get("PATH_INFO", "")
        if path != AT and not path.startswith(f"{AT}/"):
            return witness(request, start_response)
        script = request.get("SCRIPT_NAME", "") + AT
        return demo({**request, "SCRIPT_NAME": script, "PATH_INFO": path[len(AT) :] or "/"}, start_response)

    return application
