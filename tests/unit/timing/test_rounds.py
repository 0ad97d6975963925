"""When a median is known well enough, by a clock that only the functions move."""

import dataclasses
import itertools
from types import SimpleNamespace

from resrep_dist.graph import trace
from resrep_dist.graph.latency_table import table_from
from resrep_dist.timing import rounds
from resrep_dist.timing.rounds import Median, Passes, time_in_turn
from resrep_dist.timing.runtimes import onnx_options
from resrep_dist.timing.summary import summary, wide_spreads
from tests.networks import small_network
from tests.tables import table_for

import pytest


class Clock:
    """Stands for the module `time`."""

    def __init__(self):
        self.now, self.on_core, self.num_switches = 0.0, 0.0, 0

    def perf_counter(self):
        return self.now

    def process_time(self):
        return self.on_core


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(rounds, "time", clock)
    monkeypatch.setattr(rounds, "_num_switches", lambda: clock.num_switches)
    return clock


def function(clock, seconds, core_share=1.0, num_switches=0):
    """A function that takes the seconds in turn, loses a core so many times, and counts its calls."""
    durations = itertools.cycle(seconds)

    def run():
        duration = next(durations)
        run.num_calls += 1
        clock.now += duration
        clock.on_core += core_share * duration
        clock.num_switches += num_switches

    run.num_calls = 0
    return run


def num_rounds(run):
    """Two calls warm up; a sample of a slow function takes two."""
    return (run.num_calls - 2) // 2


# Of two calls of a round the second is timed.
NOISY = (0.001, 0.001, 0.001, 0.0014)


def test_a_function_stops_when_its_median_is_known(clock):
    steady, noisy = function(clock, [0.001]), function(clock, NOISY)
    medians = time_in_turn([steady, noisy], spread_bound=0.02, max_rounds=50)
    assert num_rounds(steady) == 7 and num_rounds(noisy) == 50
    assert medians[0].spread == pytest.approx(0) and medians[1].spread > 0.02


@pytest.mark.parametrize(("max_rounds", "spread"), [(1, 1.0), (2, 0.4 / 1.2), (3, 0.4 / 1.4), (6, 0.4 / 1.2)])
def test_few_samples_are_known_to_their_range_and_one_is_not_known(clock, max_rounds, spread):
    """Below seven samples; a single one once had a spread of 0."""
    (median,) = time_in_turn([function(clock, NOISY)], spread_bound=0.02, max_rounds=max_rounds)
    assert median.spread == pytest.approx(spread) and not median.is_known(0.02)


def test_a_table_of_one_round_says_that_it_is_not_known_well(clock):
    """What it says is finite, since a table refuses other numbers."""
    graph = trace(small_network())
    (whole, part) = time_in_turn([function(clock, [0.001]), function(clock, [0.0005])], spread_bound=0.02, max_rounds=1)
    spread = whole.without(part).spread
    layers = [
        dataclasses.replace(layer, spreads=tuple(tuple(spread for _ in row) for row in layer.spreads))
        for layer in table_for(graph).layers
    ]
    table = table_from(dataclasses.asdict(table_for(graph, layers=tuple(layers))))
    assert 1 <= spread < 10 and wide_spreads(dataclasses.asdict(table)) == [layer.names[0] for layer in layers]
    assert "Not known well:" in dict(summary(dataclasses.asdict(table)))


def test_for_a_sum_the_error_of_a_short_function_matters_little(clock):
    long, noisy = function(clock, [0.1]), function(clock, NOISY)
    medians = time_in_turn([long, noisy], spread_bound=0.02, max_rounds=50, is_for_a_sum=True)
    assert num_rounds(long) == num_rounds(noisy) == 7
    assert medians[1].spread > 0.02 and medians[1].is_known(0.02, at_least=50)


def test_for_a_sum_the_error_of_a_long_function_matters(clock):
    short, noisy = function(clock, [0.001]), function(clock, [100 * seconds for seconds in NOISY])
    time_in_turn([short, noisy], spread_bound=0.02, max_rounds=50, is_for_a_sum=True)
    assert num_rounds(short) == 7 and num_rounds(noisy) == 50


# One core of two threads was taken for a while, though both had more of them than one process has.
@pytest.mark.parametrize("busy", [{"core_share": 0.5}, {"core_share": 1.6, "num_switches": 1}])
def test_samples_of_a_busy_core_count_only_if_there_are_no_others(clock, busy):
    busy = function(clock, [0.003], **busy)
    assert time_in_turn([busy], spread_bound=0.02, max_rounds=9)[0].milliseconds == pytest.approx(3)
    assert num_rounds(busy) == 9


@pytest.mark.parametrize(
    ("seconds_of_a_pass", "num_passes", "milliseconds"), [(1e-4, 50, 0.1), (1e-3, 5, 1), (0.02, 1, 20)]
)
def test_a_call_that_takes_longer_than_a_pass_hardly_counts(clock, seconds_of_a_pass, num_passes, milliseconds):
    """A function of TensorFlow takes half a millisecond to be called."""
    tried = []

    def run(number):
        tried.append(number)
        clock.now += 5e-4 + number * seconds_of_a_pass
        clock.on_core = clock.now

    (median,) = time_in_turn([Passes(run)], spread_bound=0.02, max_rounds=50)
    assert tried[-2:] == [1, num_passes]
    assert median.milliseconds == pytest.approx(milliseconds, rel=0.13) and median.spread == pytest.approx(0)


def test_a_spread_is_known_by_its_own_median_or_a_larger_one():
    median = Median(milliseconds=1.0, spread=0.1)
    assert not median.is_known(0.02) and median.is_known(0.02, at_least=5.0) and not median.is_known(0.02, 4.0)
    assert Median(10.0, 0.019).is_known(0.02, at_least=1.0)


def test_a_long_sample_may_lose_a_core_now_and_then(clock):
    long = function(clock, [0.1], core_share=1.9, num_switches=3)
    time_in_turn([long], spread_bound=0.02, max_rounds=50)
    assert num_rounds(long) == 7


def test_the_mean_for_a_sum_is_that_of_all_functions(clock):
    """Also of those that are never undisturbed."""
    busy, noisy = function(clock, [0.0001], core_share=0.5), function(clock, [10 * seconds for seconds in NOISY])
    time_in_turn([busy, noisy], spread_bound=0.02, max_rounds=50, is_for_a_sum=True)
    assert num_rounds(noisy) == 50


@pytest.mark.parametrize(("platform", "is_known"), [("linux", True), ("darwin", False)])
def test_how_often_a_core_was_taken_is_known_on_linux(monkeypatch, platform, is_known):
    usage = SimpleNamespace(ru_nivcsw=7)
    monkeypatch.setattr(rounds, "resource", SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: usage))
    monkeypatch.setattr(rounds.sys, "platform", platform)
    assert rounds._num_switches() == (7 if is_known else 0)
    monkeypatch.setattr(rounds, "resource", None)
    assert rounds._num_switches() == 0


def test_idle_threads_of_a_session_do_not_spin():
    assert onnx_options(2).get_session_config_entry("session.force_spinning_stop") == "1"
    assert onnx_options(2).intra_op_num_threads == 2


def test_an_error_is_told_if_it_matters_for_the_sum():
    graph = trace(small_network())
    table = dataclasses.asdict(table_for(graph))
    assert wide_spreads(table) == [] and len(table["layers"]) > 2
    first, second = table["layers"][:2]
    for layer, milliseconds in ((first, 100.0), (second, 1e-3)):
        layer["milliseconds"] = [[milliseconds for _ in row] for row in layer["milliseconds"]]
        layer["spreads"] = [[0.05 for _ in row] for row in layer["spreads"]]
    assert wide_spreads(table) == [first["names"][0]]
    ((heading, text),) = [line for line in summary(table) if line[0] == "Not known well:"]
    assert f"such as {first['names'][0]}, vary by more than 4 % of the mean" in text, heading
