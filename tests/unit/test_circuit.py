"""A circuit against the simplest model of it, at every boundary."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consumers.circuit import Call, Circuit, Policy, State, Verdict
from topology.errors import ContractError

WORKS, FAILED, NOTHING = Verdict.WORKS, Verdict.FAILED, Verdict.NOTHING


def fail(circuit: Circuit, now: float, times: int = 1) -> None:
    for _ in range(times):
        call = circuit.admit(now)
        assert call is not None
        circuit.end(call, FAILED, now, "it failed")


def opened(**policy: float) -> Circuit:
    circuit = Circuit(Policy(**policy))  # type: ignore[arg-type]
    fail(circuit, 0.0, circuit.policy.failures)
    assert circuit.state is State.OPEN
    return circuit


# -- opening -----------------------------------------------------------------------------------------------------------


def test_it_opens_at_the_last_of_five_failures_in_a_row() -> None:
    """Not at the fourth; and it says since when, until when and why."""
    circuit = Circuit(Policy())
    fail(circuit, 10.0, 4)
    assert circuit.state is State.CLOSED
    fail(circuit, 11.0)
    assert (circuit.state, circuit.since, circuit.until, circuit.reason) == (State.OPEN, 11.0, 71.0, "it failed")
    assert circuit.admit(70.999) is None


def test_a_success_in_between_starts_the_count_again() -> None:
    """In a row means in a row."""
    circuit = Circuit(Policy())
    for _ in range(3):
        fail(circuit, 0.0, 4)
        call = circuit.admit(0.0)
        assert call is not None
        circuit.end(call, WORKS, 0.0)
    assert circuit.state is State.CLOSED


def test_what_says_nothing_neither_counts_nor_resets() -> None:
    """A job that was shut down is no news of the service."""
    circuit = Circuit(Policy())
    fail(circuit, 0.0, 4)
    call = circuit.admit(0.0)
    assert call is not None
    circuit.end(call, NOTHING, 0.0)
    fail(circuit, 0.0)
    assert circuit.state is State.OPEN


def test_with_a_rate_failures_need_not_be_in_a_row() -> None:
    """Half of the calls fail: with a rate of 0.5 it opens once five have, with 0.6 it does not."""
    for rate, state in ((0.5, State.OPEN), (0.6, State.CLOSED)):
        circuit = Circuit(Policy(failures=5, rate=rate, window=60.0))
        for n in range(10):
            call = circuit.admit(float(n))
            assert call is not None
            circuit.end(call, FAILED if n % 2 else WORKS, float(n))
        assert circuit.state is state


def test_failures_outside_the_window_are_forgotten() -> None:
    """Four, a window later four more: never five within one."""
    circuit = Circuit(Policy(failures=5, rate=0.1, window=60.0))
    fail(circuit, 0.0, 4)
    fail(circuit, 61.0, 4)
    assert circuit.state is State.CLOSED
    fail(circuit, 62.0)
    assert circuit.state is State.OPEN


# -- half-open ---------------------------------------------------------------------------------------------------------


def test_it_half_opens_at_the_end_of_the_reset_and_not_before() -> None:
    """The moment itself is the first."""
    circuit = opened()
    assert circuit.admit(math.nextafter(60.0, 0.0)) is None
    assert circuit.admit(60.0) is not None
    assert circuit.state is State.HALF_OPEN


def test_at_most_three_probes_at_a_time() -> None:
    """The fourth waits for one of them to end without a word; a success lets everybody in."""
    circuit = opened()
    probes = [circuit.admit(60.0) for _ in range(4)]
    assert [probe is not None for probe in probes] == [True, True, True, False]
    assert probes[0] is not None
    circuit.end(probes[0], NOTHING, 60.0)
    assert circuit.admit(60.0) is not None
    assert circuit.admit(60.0) is None
    assert probes[1] is not None
    circuit.end(probes[1], WORKS, 61.0)
    assert circuit.state is State.CLOSED


def test_a_failed_probe_opens_it_again_for_a_whole_reset() -> None:
    """And the other probes' ends are old news."""
    circuit = opened()
    first, second = circuit.admit(60.0), circuit.admit(60.0)
    assert first is not None
    assert second is not None
    circuit.end(first, FAILED, 65.0)
    assert (circuit.state, circuit.until) == (State.OPEN, 125.0)
    circuit.end(second, WORKS, 66.0)
    assert circuit.state is State.OPEN


def test_a_probe_that_never_ends_gives_its_place_back() -> None:
    """After the time of a reset: a thread that hangs must not keep the breaker half-open for ever."""
    circuit = opened(probes=1)
    lost = circuit.admit(60.0)
    assert lost is not None
    assert circuit.admit(119.9) is None
    assert circuit.admit(120.0) is not None
    circuit.end(lost, WORKS, 121.0)
    assert circuit.state is State.CLOSED


def test_calls_of_an_earlier_phase_say_nothing() -> None:
    """A slow call that began while it was closed must not close it, nor open it anew."""
    circuit = Circuit(Policy())
    slow = [circuit.admit(0.0) for _ in range(2)]
    fail(circuit, 1.0, 5)
    circuit.tick(61.0)
    assert circuit.state is State.HALF_OPEN
    for call, verdict in zip(slow, (FAILED, WORKS), strict=True):
        assert call is not None
        circuit.end(call, verdict, 62.0)
    assert circuit.state is State.HALF_OPEN


def test_a_guarded_circuit_waits_for_the_permission() -> None:
    """Somebody else decides; when nobody does any more it decides itself."""
    circuit = opened()
    circuit.guard(True)
    assert circuit.admit(60.0) is None
    assert circuit.state is State.HALF_OPEN
    circuit.permit(True)
    assert circuit.admit(60.0) is not None
    circuit.permit(False)
    assert circuit.admit(60.0) is None
    circuit.guard(False)
    assert circuit.admit(60.0) is not None


@pytest.mark.parametrize(
    "policy",
    [
        {"failures": 0},
        {"failures": True},
        {"failures": 1.5},
        {"probes": 0},
        {"reset": 0},
        {"reset": math.nan},
        {"reset": math.inf},
        {"reset": "60"},
        {"window": -1.0},
        {"rate": 0.0},
        {"rate": 1.1},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: dict[str, object]) -> None:
    """At once, not at the first failure."""
    with pytest.raises(ContractError):
        Policy(**policy)  # type: ignore[arg-type]


# -- the model ---------------------------------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """The state is worked out anew from the history of what happened, each time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.calls: list[Call] = []

    @initialize(
        failures=st.integers(1, 4),
        probes=st.integers(1, 3),
        reset=st.sampled_from([0.5, 3.0, 10.0]),
    )
    def begin(self, failures: int, probes: int, reset: float) -> None:
        self.policy = Policy(failures, reset, probes)
        self.circuit = Circuit(self.policy)
        self.state, self.entered, self.row = State.CLOSED, 0.0, 0
        self.probes: list[Call] = []
        self.of_state: set[int] = set()

    def enter(self, state: State) -> None:
        self.state, self.entered, self.row = state, self.now, 0
        self.probes, self.of_state = [], set()

    def pass_time(self) -> None:
        if self.state is State.OPEN and self.now >= self.entered + self.policy.reset:
            self.enter(State.HALF_OPEN)

    @rule(seconds=st.sampled_from([0.0, 0.125, 0.5, 2.875, 3.0, 10.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def call(self) -> None:
        self.pass_time()
        self.probes = [call for call in self.probes if self.now - call.began < self.policy.reset]
        expected = self.state is State.CLOSED or (
            self.state is State.HALF_OPEN and len(self.probes) < self.policy.probes
        )
        call = self.circuit.admit(self.now)
        assert (call is not None) is expected
        if call is not None:
            self.calls.append(call)
            self.of_state.add(id(call))
            if self.state is State.HALF_OPEN:
                self.probes.append(call)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), verdict=st.sampled_from(Verdict))
    def end(self, data: st.DataObject, verdict: Verdict) -> None:
        call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        self.circuit.end(call, verdict, self.now)
        self.probes = [probe for probe in self.probes if probe is not call]
        if verdict is NOTHING or id(call) not in self.of_state:
            return
        if self.state is State.HALF_OPEN:
            self.enter(State.OPEN if verdict is FAILED else State.CLOSED)
        elif self.state is State.CLOSED:
            self.row = self.row + 1 if verdict is FAILED else 0
            if self.row >= self.policy.failures:
                self.enter(State.OPEN)

    @rule(state=st.sampled_from(State))
    def follow(self, state: State) -> None:
        self.pass_time()
        self.circuit.tick(self.now)
        if state is State.OPEN:
            self.circuit.open(self.now, self.policy.reset)
        elif state is State.HALF_OPEN:
            self.circuit.half_open(self.now)
        else:
            self.circuit.close(self.now)
        if state is not self.state:
            self.enter(state)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "circuit"):
            self.pass_time()
            self.circuit.tick(self.now)
            assert self.circuit.state is self.state
            assert self.circuit.probing(self.now) <= self.policy.probes
            if self.state is State.OPEN:
                assert self.circuit.until - self.now <= self.policy.reset


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
