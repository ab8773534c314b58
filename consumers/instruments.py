"""Metrics of the recorder and of breakers, through OpenTelemetry's API: without an SDK they cost next to nothing."""

from __future__ import annotations

from typing import Final

from opentelemetry import metrics

_meter: Final = metrics.get_meter("hareline")

EVENTS_RECORDED: Final = _meter.create_counter(
    "hareline.recorder.events", unit="{event}", description="State changes written to the job log."
)
EVENTS_REFUSED: Final = _meter.create_counter(
    "hareline.recorder.events.refused", unit="{event}", description="State changes that made no sense."
)
BATCHES_REFUSED: Final = _meter.create_counter(
    "hareline.recorder.batches.refused", unit="{batch}", description="Messages that are no batch of reports."
)
LAG: Final = _meter.create_gauge(
    "hareline.recorder.lag", unit="s", description="Age of the newest batch of reports when it was committed."
)
ROWS_CLEANED: Final = _meter.create_counter(
    "hareline.recorder.cleaned", unit="{row}", description="Rows removed after their retention, by table."
)
REPORTS_MISSING: Final = _meter.create_gauge(
    "hareline.recorder.batches.missing", unit="{batch}", description="Batches that were sent and have not arrived."
)
REPORTS_DROPPED: Final = _meter.create_gauge(
    "hareline.recorder.events.dropped", unit="{event}", description="State changes that reporters gave up."
)
DEAD_ALERTS: Final = _meter.create_counter(
    "hareline.dead_letters.alerts", description="Times that more jobs than HARELINE_DEAD_ALERT died within an hour."
)
DEAD_LETTERS: Final = _meter.create_gauge(
    "hareline.dead_letters", unit="{job}", description="Dead jobs that are neither replayed nor discarded."
)
DEAD_LETTERS_LAST_DAY: Final = _meter.create_gauge(
    "hareline.dead_letters.last_24h", unit="{job}", description="Those of them that died within the last 24 hours."
)
BREAKER_STATE: Final = _meter.create_gauge(
    "hareline.breaker.state", description="0 closed, 1 half-open, 2 open; by breaker, as this process sees it."
)
BREAKER_TRANSITIONS: Final = _meter.create_counter(
    "hareline.breaker.transitions", description="Changes of state, by breaker and the new state."
)
BREAKER_REJECTED: Final = _meter.create_counter(
    "hareline.breaker.rejected", unit="{call}", description="Calls that a breaker did not let through."
)
