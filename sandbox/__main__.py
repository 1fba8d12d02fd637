"""python -m sandbox --port 4242 --data .local/sandbox.json: a pretend Stripe until Ctrl-C or SIGTERM."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from sandbox.server import DEFAULT_KEY, CannotStart, open_server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description="A pretend Stripe on this machine.")
    parser.add_argument("--port", type=int, default=4242)
    parser.add_argument("--data", type=Path, help="a JSON file that keeps the account over restarts")
    parser.add_argument("--public-url", default="", help="how browsers reach it, if not as localhost")
    parser.add_argument("--key", default=DEFAULT_KEY, help="the only secret key it accepts")
    parser.add_argument(
        "--webhook-url", default="", help="where to tell of every event, signed with $STRIPE_WEBHOOK_SECRET"
    )
    options = parser.parse_args()
    try:
        server = open_server(
            port=options.port,
            data=options.data,
            key=options.key,
            public_url=options.public_url,
            webhook_url=options.webhook_url,
            webhook_secret=signing_secret(os.environ),
        )
    except CannotStart as reason:
        sys.exit(str(reason))
    for number in (signal.SIGTERM, signal.SIGINT):
        # from a thread, for this one serves; repeating it is harmless, so is a signal before serving began
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"A pretend Stripe listens on {server.url}", flush=True)
    server.serve_forever(poll_interval=0.1)


def signing_secret(environ: Mapping[str, str]) -> str:
    """The service's own, the first where it has several. Whoever is on the machine can read a command line."""
    return environ.get("STRIPE_WEBHOOK_SECRET", "whsec_sandbox").partition(",")[0].strip()


if __name__ == "__main__":
    main()
