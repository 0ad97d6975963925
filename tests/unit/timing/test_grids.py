"""What is timed: functions in turn, blocks of channels, widths of layers."""

import itertools
from functools import partial

from resrep_dist.graph import trace
from resrep_dist.graph.latency import Latency
from resrep_dist.graph.latency_table import table_from
from resrep_dist.models.mobilenet import mobilenet_v1
from resrep_dist.timing import measuring
from resrep_dist.timing.grids import grid_widths, possible_points, scans_of, unequal
from resrep_dist.timing.rounds import Median, time_in_turn
from resrep_dist.timing.steps import SIZES, find_steps
from resrep_dist.timing.table import Steps
from tests.networks import grouped_classifier, small_mobilenet, small_resnet

import numpy as np
import pytest
from tensorflow import keras


def test_functions_are_timed_in_turn_until_they_are_known():
    order = []
    work = np.ones(20_000)

    def run(name, size):
        order.append(name)
        return np.sort(work[:size])

    runs = [partial(run, "small", 2_000), partial(run, "large", 20_000)]
    small, large = time_in_turn(runs, spread_bound=0.5, max_rounds=400)
    assert 0 < small.milliseconds < large.milliseconds
    assert order[0] == "small" and order.index("large") < 5
    num_calls = len(order)
    time_in_turn(runs, spread_bound=1e-9, max_rounds=3)
    assert len(order) - num_calls < num_calls or num_calls < 500
    rest = Median(1.0, 0.03).without(Median(0.6, 0.05))
    assert rest.milliseconds == pytest.approx(0.4)
    assert rest.spread == pytest.approx(np.hypot(0.03, 0.03) / 0.4)
    assert Median(1.0, 0.03).without(None) == Median(1.0, 0.03)


@pytest.mark.parametrize("size, share, unit", [(8, 1.0, 1), (16, 0.5, 1), (1, 0.0, 1), (16, 1.0, 4)])
def test_blocks_of_channels_are_found_and_not_assumed(size, share, unit):
    random = np.random.default_rng(0)
    widths = np.arange(33, 65)
    blocks = -(-widths // size) * size
    counted = np.where(widths % unit, 2.1 * widths, widths + share * (blocks - widths))
    times = (0.1 + 0.01 * counted) * random.normal(1, 0.005, len(widths))
    found = find_steps(widths.tolist(), times.tolist())
    assert (found.size, found.share, found.unit) == (size, pytest.approx(share, abs=0.21), unit)
    assert found.detour == pytest.approx(2.1 if unit > 1 else 1.0, abs=0.1)


def test_a_layer_is_measured_at_whole_blocks_and_below_one():
    calls = {call.name: call for call in trace(small_mobilenet(32, 10)).calls}
    inputs, outputs = grid_widths(calls["block7_depthwise"], [Steps(8, 1.0), Steps()])
    full = calls["block7_depthwise"].full_widths[0]
    assert inputs[-1] == full and {2, 4, 6, 8} <= set(inputs) and len(outputs) == 1
    assert all(width % 8 == 0 for width in inputs if width >= 8)
    grouped = {call.name: call for call in trace(grouped_classifier(16, 10)).calls}["conv1"]
    assert all(width % 4 == 0 for side in grid_widths(grouped, [Steps(), Steps()]) for width in side)
    scans = {(scan.kind, scan.side): scan.widths for scan in scans_of(list(calls.values()))}
    assert set(scans) == {("Conv2D 1x1", 0), ("Conv2D 1x1", 1), ("Conv2D 3x3", 1), ("Dense", 0),
                          ("DepthwiseConv2D 3x3 by channel", 0)}  # fmt: skip
    assert all(widths[-1] - widths[0] < 48 for widths in scans.values())


def test_a_depthwise_convolution_by_groups_is_another_kind_than_a_full_one_of_its_kernel():
    layers, x = keras.layers, keras.Input([8, 8, 3])
    inputs = x
    for num_groups in (1, 64):
        x = layers.Conv2D(64, 3, groups=num_groups, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    calls = trace(keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))).calls
    assert [call.kind for call in calls] == ["Conv2D 3x3", "Conv2D 3x3 by channel", "Dense"]


@pytest.mark.parametrize("network", [small_resnet, small_mobilenet, grouped_classifier])
def test_a_bundle_has_all_widths_that_blocks_can_ask_for(network):
    calls = unequal(trace(network(32, 10), residual_groups=True).calls)
    points = possible_points(calls)
    assert len(set(points)) == len(points)
    assert {point for scan in scans_of(calls) for point in scan.points} <= set(points)
    for sizes in itertools.product(SIZES, repeat=2):
        steps = [Steps(size, 1.0, min(size, 4), 2.0) for size in sizes]
        for call in calls:
            inputs, outputs = grid_widths(call, steps)
            assert {(call, i, o) for i in inputs for o in outputs} <= set(points)


def in_blocks(call, inputs, outputs):
    """The time of a layer in a runtime that computes blocks of 16 channels, ms."""
    inputs, outputs = (-(-width // 16) * 16 for width in (inputs, outputs))
    return 0.01 + 1e-4 * (inputs if call.is_per_channel else inputs * outputs)


class Timed:
    """Files whose passes are their times."""

    def __init__(self, task):
        self.task = task

    def layer(self, point):
        return in_blocks(*point)

    def whole(self, number):
        widths = self.task.model_widths[max(0, number - 1)]
        sides = [[sum(widths[group] if group is not None else width for group, width in side)
                  for side in (call.inputs, call.output)] for call in self.task.calls]  # fmt: skip
        return 0.5 + sum(in_blocks(call, *of_call) for call, of_call in zip(self.task.calls, sides, strict=True))


def wide_grouped_network():
    """A convolution of 4 groups between two that are not."""
    layers, x = keras.layers, keras.Input([8, 8, 3])
    inputs = x
    for number, (width, size, num_groups) in enumerate([(64, 1, 1), (64, 3, 4), (64, 1, 1)]):
        x = layers.Conv2D(width, size, groups=num_groups, use_bias=False, name=f"conv{number}")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("network", [partial(mobilenet_v1, 32, 10), wide_grouped_network])
def test_blocks_that_are_free_in_all_measured_layers_are_used_beside_layers_that_are_not_scanned(monkeypatch, network):
    """The outputs of a depthwise convolution are its inputs, and a grouped one has its groups."""
    monkeypatch.setattr(measuring, "time_in_turn", lambda runs, **_: [Median(run, 0.001) for run in runs])
    graph = trace(network())
    widths = tuple(tuple(max(1, width // part) for width in graph.widths) for part in (1, 2, 4))
    task = measuring.Task("wide", "onnx", 1, graph.calls, (), widths)
    versions = {"onnxruntime": "1.0"}
    table = table_from(measuring.measure(task, Timed(task), num_threads=1, versions=versions, progress=lambda *_: None))
    latency = Latency(table, graph, "costs.json")
    assert latency.total(graph.widths) == pytest.approx(table.base_ms)
    for index, group in enumerate(graph.groups):
        fast = [w for w in range(1, group.width + 1) if w * group.num_parts <= 16 or w * group.num_parts % 16 == 0]
        assert latency.fast_widths(index, group.width) == fast, group.name
