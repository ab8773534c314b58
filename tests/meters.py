"""What the metrics say, as an operator's exporter would read them."""

from __future__ import annotations

from functools import cache
from typing import Any

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader


@cache
def _reader() -> InMemoryMetricReader:
    # A process has one provider for ever.
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    return reader


def measured(name: str, **attributes: Any) -> float:
    """The latest value of a counter or gauge; 0 where it has none."""
    data = _reader().get_metrics_data()
    points = [
        point
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
        if dict(point.attributes or {}) == attributes
    ]
    return float(points[-1].value) if points else 0.0  # type: ignore[union-attr]
