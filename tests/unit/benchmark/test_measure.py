"""`resrep measure`: grid, blocks of channels, layers in the runtimes, and the table, with times that are known."""

import json
from functools import partial

from resrep_dist.benchmark import measure
from resrep_dist.benchmark.layer_grids import find_steps, grid_widths, layer_at, scans_of
from resrep_dist.benchmark.rounds import Median, time_in_turn
from resrep_dist.benchmark.timers import _convolutions_in_onnx, _layer_in_tflite, require_runtime, single_layer
from resrep_dist.cli.main import main
from resrep_dist.errors import UserError
from resrep_dist.graph import flatten, trace
from resrep_dist.graph.latency_table import Steps, read_table
from tests.networks import grouped_classifier, small_config, small_mobilenet

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
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
    assert set(scans) == {("Conv2D 1x1", 0), ("Conv2D 1x1", 1), ("Conv2D 3x3", 1), ("DepthwiseConv2D 3x3", 0),
                          ("Dense", 0)}  # fmt: skip
    assert all(widths[-1] - widths[0] < 48 for widths in scans.values())


@pytest.mark.parametrize("name", ["stem", "block2_depthwise", "block2_pointwise"])
def test_a_layer_in_a_runtime_is_that_of_the_model(name):
    model = flatten(small_mobilenet(32, 10))
    (call,) = [call for call in trace(model).calls if call.name == name]
    layer = layer_at(model.get_layer(name), call, call.full_widths[0], 5, behind_another=name != "stem")
    for weighted in (part for part in layer.layers if part.weights):
        weighted.bias.assign(np.random.default_rng(0).normal(size=weighted.bias.shape))
    images = np.random.default_rng(1).normal(size=(2, *layer.input_shape[1:])).astype(np.float32)
    expected = layer(images).numpy()
    assert expected.shape[-1] == (call.full_widths[0] if call.is_per_channel else 5)

    onnxruntime = pytest.importorskip("onnxruntime")
    first = np.ascontiguousarray(np.moveaxis(images, -1, 1))
    data = _convolutions_in_onnx([part for part in layer.layers if part.weights], first.shape)
    (received,) = onnxruntime.InferenceSession(data).run(None, {"images": first})
    np.testing.assert_allclose(np.moveaxis(received, 1, -1), expected, atol=1e-4)

    interpreter = Interpreter(model_content=_layer_in_tflite(layer, images))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(output, expected, atol=1e-4)
    for runtime in ("keras", "tflite", "onnx"):
        single_layer(layer, runtime, 2, 1)()


class Known:
    """A forward pass whose time is known: its multiply-adds."""

    def __init__(self, model, *_):
        graph = trace(model)
        self.milliseconds = 1e-5 * graph.macs.total(graph.widths) + 0.1


@pytest.fixture
def known_times(monkeypatch):
    monkeypatch.setattr(measure, "single_layer", Known)
    monkeypatch.setattr(measure, "whole_model", Known)
    monkeypatch.setattr(measure, "time_in_turn", lambda runs, **_: [Median(run.milliseconds, 0.001) for run in runs])


@pytest.mark.parametrize("runtime", ["tflite", "onnx"])
def test_the_table_predicts_the_times_of_whole_models(tmp_path, capsys, known_times, runtime):
    config = small_config(model={"name": "python:tests.networks:small_classifier"})
    path, costs = tmp_path / "config.yaml", tmp_path / "costs.json"
    path.write_text(config.to_yaml())
    assert main(["measure", str(path), "--runtime", runtime, "--threads", "1", "--output", str(costs)]) == 0
    printed = capsys.readouterr().out
    assert "kinds of 4 layers" in printed and "Do not aim" not in printed and "Not known well" not in printed
    table, _ = read_table(costs)
    assert (table.runtime, table.num_threads, table.batch_size) == (runtime, 1, 1) and table.machine["cores"]
    assert len(table.checks) == 6 and measure.worst_error(table) < 0.03
    assert main(["inspect", str(path), "--set", "prune.target_macs_fraction=null",
                 "--set", f"prune.target={{latency_fraction: 0.8, costs: {costs}}}"]) == 0  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{table.base_ms:.4g} ms; target {0.8 * table.base_ms:.4g} ms (80.0 %); lowest possible" in printed
    assert "Parameters (of the merged model): " in printed


def test_what_cannot_be_measured_is_refused(tmp_path, capsys, monkeypatch):
    config = small_config(model={"name": "python:tests.networks:small_classifier"})
    path = tmp_path / "config.yaml"
    document = json.loads(json.dumps(config.to_dict()))
    del document["prune"], document["base"]
    path.write_text(json.dumps(document))
    command = ["measure", str(path), "--runtime", "onnx", "--output", str(tmp_path / "costs.json")]
    assert main(command) == 2 and "no section `prune`" in capsys.readouterr().err
    monkeypatch.setattr("resrep_dist.benchmark.timers._version", lambda name: None)
    with pytest.raises(UserError, match="--runtime onnx: onnxruntime is missing; install it with"):
        require_runtime("onnx", 1)
    with pytest.raises(UserError, match="--threads 99: TensorFlow has started already"):
        keras.layers.Dense(1)(np.ones([1, 1], np.float32))
        require_runtime("keras", 99)
