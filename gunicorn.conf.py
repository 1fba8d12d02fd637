"""How gunicorn runs the service. Its own environment variables and arguments win over what stands here."""

from __future__ import annotations

import os
from typing import Any

from billing import outbound, telemetry

host = "0.0.0.0" if "DYNO" in os.environ else "127.0.0.1"  # noqa: S104  # a dyno is reached from outside only
bind = f"{host}:{os.environ.get('PORT', '8000')}"

worker_class = "billing.serving.Worker"  # gthread, with limited patience
threads = outbound.KEPT_OPEN  # requests in flight per worker; each waits for Stripe most of its life
reuse_port = False  # see docs/decisions.md
preload_app = True  # settings are checked once, before anything listens
timeout = 28  # a worker that does not even breathe is replaced before the router's 30 s
graceful_timeout = 20
keepalive = 95  # longer than the router's 90 s and nginx's 60 s, so that they close first
max_requests = 50_000
max_requests_jitter = 5_000
limit_request_line = 4094
limit_request_field_size = 8190
control_socket_disable = True
logconfig_dict = telemetry.LOGGING


def post_worker_init(worker: Any) -> None:
    """Exporters are threads, so each worker starts its own; before this it would miss a SIGTERM meanwhile."""
    telemetry.start()
    worker.log.info("Worker ready (pid: %s)", worker.pid)


def worker_exit(_server: Any, _worker: Any) -> None:
    """Send what the worker still holds."""
    telemetry.stop()
