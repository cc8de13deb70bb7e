"""A provider of OpenTelemetry in memory, for as long as a test needs it: what the app said stays to be read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared import telemetry

type Point = tuple[Mapping[str, Any], float]


class Recorded:
    """Spans that have ended, and the metrics so far."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._metrics = InMemoryMetricReader()
        self.meters = MeterProvider([self._metrics], shutdown_on_exit=False)

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """All spans, or those of that name, in the order in which they ended."""
        return [span for span in self._spans.get_finished_spans() if name in ("", span.name)]

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def metrics(self) -> dict[str, list[Point]]:
        """By name: attributes with the value, which is the sum where the metric is a histogram.

        Gauges show what was set since the last look.
        """
        data = self._metrics.get_metrics_data()
        found: dict[str, list[Point]] = {}
        for of_resource in data.resource_metrics if data else ():
            for of_scope in of_resource.scope_metrics:
                for metric in of_scope.metrics:
                    points = metric.data.data_points
                    found[metric.name] = [(dict(point.attributes or {}), _figure(point)) for point in points]
        return found

    def everything(self) -> str:
        """All that left the app, as one text to look for secrets in."""
        return "\n".join([span.to_json() for span in self.spans()] + [repr(self.metrics())])


def _figure(point: Any) -> float:
    return float(point.sum if isinstance(point, HistogramDataPoint) else point.value)


@contextmanager
def recorded() -> Iterator[Recorded]:
    kept = Recorded()
    instruments = telemetry.Instruments(kept.meters.get_meter(telemetry.SCOPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "tracer", lambda: kept.tracers.get_tracer(telemetry.SCOPE))
        patch.setattr(telemetry, "_instruments", lambda: instruments)
        yield kept
