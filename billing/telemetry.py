"""What the service tells about itself: JSON lines on stdout, traces and metrics over OTLP.

`observed(name)` goes round every door: a span, a call counter and a duration histogram, with the outcome.
`start()` runs once per process, after the fork, and does nothing unless an OTLP endpoint is configured;
`stop()` flushes. Log lines are an event name plus fields, with request id, trace id and tenant where known.
Never a token, key, signature, e-mail, database address or link.

A delivery's request leaves its `traceparent` on the event's row. What is done because of the event links back
to that request (`follow`), and so does what has come of it (`happened`).
"""

from __future__ import annotations

import functools
import logging.config
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ParamSpec, TypeVar

import structlog
from flask import Flask
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from billing.errors import BillingError

EXPORT_SECONDS = 3  # a dead collector must not hold up a shutdown
MOST_CAUSES = 100  # events named in a line, and linked from a span, which holds 128

Causes = Mapping[str, str | None]  # events by id, each with the traceparent of the request that brought it

P = ParamSpec("P")
R = TypeVar("R")

_PARENT = TraceContextTextMapPropagator()  # whatever OTEL_PROPAGATORS says: the row's form is ours

log = structlog.get_logger(__name__)
tracer = trace.get_tracer("billing")
meter = metrics.get_meter("billing")
calls = meter.create_counter("billing.calls", description="Calls of a door, by operation and outcome")
duration = meter.create_histogram("billing.duration", unit="s", description="Time spent in a door")
signatures = meter.create_counter(
    "billing.webhook.signatures",
    description="Signatures at the webhook, by the place of the secret and outcome",
)
stripe_calls = meter.create_counter(
    "billing.stripe.calls", description="Requests to Stripe, by endpoint and outcome"
)


def observed(operation: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Span, counter and histogram around a door. A refusal we meant is an outcome, not an error."""

    def wrap(door: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(door)
        def inner(*args: P.args, **kwargs: P.kwargs) -> R:
            started, outcome = time.perf_counter(), "ok"
            with _span(operation) as span:
                try:
                    return door(*args, **kwargs)
                except BillingError as e:
                    outcome = e.outcome
                    if e.status >= 500:
                        span.set_status(trace.StatusCode.ERROR, outcome)
                    raise
                except Exception as e:
                    outcome = type(e).__name__
                    span.record_exception(e)
                    span.set_status(trace.StatusCode.ERROR, outcome)
                    raise
                finally:
                    attributes = {"operation": operation, "outcome": outcome}
                    span.set_attributes({"billing.operation": operation, "billing.outcome": outcome})
                    calls.add(1, attributes)
                    duration.record(time.perf_counter() - started, attributes)

        inner.__operation__ = operation  # type: ignore[attr-defined]  # read by the test that no door is unobserved
        return inner

    return wrap


def _span(operation: str) -> AbstractContextManager[trace.Span]:
    """The request's own span where Flask's instrumentation has opened one; other doors get one of their own."""
    current = trace.get_current_span()
    if current.is_recording():
        return nullcontext(current)
    return tracer.start_as_current_span(operation, record_exception=False, set_status_on_exception=False)


# ---- from a request to what it changed


def mention(**facts: str | int | None) -> None:
    """Say on the span what it is about, by ids."""
    trace.get_current_span().set_attributes(_named(facts))


def traceparent() -> str | None:
    """Where this is, for somebody who goes on with it elsewhere; None where nobody records it."""
    carrier: dict[str, str] = {}
    if trace.get_current_span().is_recording():
        _PARENT.inject(carrier)
    return carrier.get("traceparent")


def follow(causes: Causes) -> None:
    """Link the span to the requests with which its causes came. Events we fetched ourselves came with none."""
    span = trace.get_current_span()
    if span.is_recording():
        for link in _links(causes):
            span.add_link(link.context, link.attributes)


def happened(what: str, causes: Causes, **facts: str | int | None) -> None:
    """Say that something has come of these events: a line, and a span that is linked to their requests."""
    events = list(islice(causes, MOST_CAUSES))
    attributes = {**_named(facts), "billing.events": events}
    tracer.start_span(what, links=list(_links(causes)), attributes=attributes).end()
    log.info(what, **facts, events=events)


def _named(facts: Mapping[str, str | int | None]) -> dict[str, str | int]:
    return {f"billing.{name}": fact for name, fact in facts.items() if fact is not None}


def _links(causes: Causes) -> Iterator[trace.Link]:
    for event_id, parent in islice(causes.items(), MOST_CAUSES):
        context = trace.get_current_span(_PARENT.extract({"traceparent": parent or ""})).get_span_context()
        if context.is_valid:
            yield trace.Link(context, {"billing.event": event_id})


# ---- figures


@dataclass(frozen=True, slots=True)
class Gauge:
    """A figure that goes up and down."""

    name: str
    unit: str
    description: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A gauge's value at this moment. Its attributes have few values: no ids of tenants or customers."""

    gauge: str
    value: float
    attributes: Mapping[str, str] = field(default_factory=dict)


Measure = Callable[[], Iterable[Figure]]
AT_ONCE_SECONDS = 5.0  # gauges that are read within this are of one measure

_watched: dict[Sequence[Gauge], Measure] = {}


def watch(gauges: Sequence[Gauge], measure: Measure) -> None:
    """Have these exported, if anything is: measured together, each time they are taken, and at no other."""
    _watched[gauges] = measure


def report(meter: metrics.Meter, watched: Mapping[Sequence[Gauge], Measure] = _watched) -> None:
    """Have the meter take what is watched. A gauge that its measure leaves out is not exported."""
    for gauges, measure in watched.items():
        figures = _Figures(measure)
        for gauge in gauges:
            meter.create_observable_gauge(
                gauge.name,
                callbacks=[functools.partial(figures.of, gauge.name)],
                unit=gauge.unit,
                description=gauge.description,
            )


class _Figures:
    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._measured: Sequence[Figure] = ()
        self._next_measure = 0.0

    def of(self, gauge: str, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        if time.monotonic() >= self._next_measure:
            self._measured = list(self._measure())
            self._next_measure = time.monotonic() + AT_ONCE_SECONDS
        return [metrics.Observation(one.value, one.attributes) for one in self._measured if one.gauge == gauge]


# ---- processes


def start() -> None:
    """Begin to export, when OTEL_EXPORTER_OTLP_ENDPOINT says where to."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    resource = Resource.create(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", "billing"),
            "service.instance.id": f"{os.environ.get('DYNO', 'local')}-{os.getpid()}",
        }
    )
    traces = TracerProvider(resource=resource)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=EXPORT_SECONDS)))
    trace.set_tracer_provider(traces)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(timeout=EXPORT_SECONDS))
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=[reader]))
    report(meter)


def stop() -> None:
    """Send what is left and end."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        if isinstance(provider, TracerProvider | MeterProvider):
            provider.shutdown()


def instrument(app: Flask) -> None:
    """Spans for every request and statement, where somebody listens; `outbound` makes its own."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return
    FlaskInstrumentor().instrument_app(  # type: ignore[no-untyped-call]
        app,
        excluded_urls="healthz,readyz",
        meter_provider=metrics.NoOpMeterProvider(),  # `observed` counts and times already
    )
    PsycopgInstrumentor().instrument(skip_dep_check=True)


def _trace_id(_logger: Any, _method: str, line: dict[str, Any]) -> dict[str, Any]:
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        line["trace_id"] = f"{span.trace_id:032x}"
    return line


LINE: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _trace_id,
    structlog.processors.format_exc_info,
]
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": structlog.stdlib.ProcessorFormatter,
            "foreign_pre_chain": [*LINE, structlog.stdlib.PositionalArgumentsFormatter()],
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        }
    },
    "handlers": {
        "stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}
    },
    "root": {"level": "INFO", "handlers": ["stdout"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "propagate": True},
        "gunicorn.access": {"level": "WARNING"},  # the service writes a line of its own per request
        # Quieter: what these say at INFO is of no use to an operator, and stripe's quotes what was sent.
        **{name: {"level": "WARNING"} for name in ("alembic", "opentelemetry", "stripe", "urllib3")},
    },
}


def hide_query(path: str) -> None:
    """Take the query out of the request's span: a caller may have put anything there, a token by mistake."""
    hidden = {"url.query": "", "http.target": path, "http.url": ""}
    trace.get_current_span().set_attributes(hidden)


def configure_logging() -> None:
    """One JSON line per event on stdout, for our loggers and everybody else's."""
    structlog.configure(
        processors=[*LINE, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    logging.config.dictConfig(LOGGING)
