"""What a test's own process tells while the test listens: its spans, and what it counts.

OpenTelemetry lets a process have one provider of each, for good. The one of spans is deaf but for the time that
somebody listens, so that no other test pays for it, or finds a trace on its rows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Heard:
    """The finished spans, oldest first."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def all(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def of(self, name: str, **attributes: object) -> list[ReadableSpan]:
        """Those of this name whose `billing.` attributes say this."""
        wanted = {f"billing.{key}": value for key, value in attributes.items()}
        named = [span for span in self.all() if span.name == name]
        return [span for span in named if wanted.items() <= (span.attributes or {}).items()]


def said(span: ReadableSpan, name: str) -> Any:
    """What the span says under `billing.<name>`."""
    return (span.attributes or {}).get(f"billing.{name}")


class _Tracer(trace.Tracer):
    def __init__(self, provider: _Provider, real: trace.Tracer) -> None:
        self._provider = provider
        self._real = real
        self._deaf = trace.NoOpTracer()

    def _one(self) -> trace.Tracer:
        return self._real if self._provider.is_listening else self._deaf

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._one().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._one().start_as_current_span(*args, **kwargs)


class _Provider(trace.TracerProvider):
    def __init__(self) -> None:
        self.is_listening = False
        self.exporter = InMemorySpanExporter()
        self._real = TracerProvider()
        self._real.add_span_processor(SimpleSpanProcessor(self.exporter))

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return _Tracer(self, self._real.get_tracer(*args, **kwargs))


_provider = _Provider()


@contextmanager
def listening() -> Iterator[Heard]:
    """Apps made and workers begun in here are traced as if their traces were sent somewhere."""
    if trace.get_tracer_provider() is not _provider:
        trace.set_tracer_provider(_provider)
    os.environ[ENDPOINT] = "http://127.0.0.1:9"  # that there is one is all that matters: nothing is sent
    _provider.is_listening = True
    connect = vars(psycopg.Connection)["connect"]
    try:
        yield Heard(_provider.exporter)
    finally:
        _provider.is_listening = False
        _provider.exporter.clear()
        del os.environ[ENDPOINT]
        if PsycopgInstrumentor().is_instrumented_by_opentelemetry:
            PsycopgInstrumentor().uninstrument()
            # It puts back what makes no subclass: `ImpatientConnection.connect` would be psycopg's own.
            psycopg.Connection.connect = connect  # type: ignore[method-assign]


# ---- figures

_reader = InMemoryMetricReader()

Point = frozenset[tuple[str, object]]  # the attributes that a figure goes by


def point(**attributes: object) -> Point:
    return frozenset(attributes.items())


@contextmanager
def counting(name: str) -> Iterator[Callable[[], Counter[Point]]]:
    """What is counted under this name in here, by attributes."""
    if not isinstance(metrics.get_meter_provider(), MeterProvider):
        metrics.set_meter_provider(MeterProvider(metric_readers=[_reader]))
    before = taken(_reader).get(name, Counter())
    yield lambda: taken(_reader).get(name, Counter()) - before


def taken(reader: InMemoryMetricReader) -> dict[str, Counter[Point]]:
    """All that an exporter would get now, by name and attributes; of histograms, how many values they hold."""
    data = reader.get_metrics_data()
    found: dict[str, Counter[Point]] = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = metric.data.data_points
                values = ((point(**(one.attributes or {})), getattr(one, "value", 0)) for one in points)
                found[metric.name] = Counter(dict(values))
    return found
