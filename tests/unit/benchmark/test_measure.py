"""`resrep measure`: grid, blocks of channels, layers in the runtimes, and the table, with times that are known."""

import dataclasses
import json
import sys

from resrep_dist.benchmark import measure
from resrep_dist.benchmark.single_layers import layer_at
from resrep_dist.benchmark.timers import (
    _convolutions_in_onnx,
    _layer_in_tflite,
    layer_file,
    require_runtime,
    single_layer,
)
from resrep_dist.cli.main import main
from resrep_dist.errors import UserError
from resrep_dist.graph import flatten, trace
from resrep_dist.graph.latency_table import read_table
from resrep_dist.timing import measuring
from resrep_dist.timing.rounds import Median
from resrep_dist.timing.summary import worst_error
from tests.networks import small_config, small_mobilenet

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tensorflow import keras


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

    interpreter = Interpreter(model_content=_layer_in_tflite(layer, images.shape))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(output, expected, atol=1e-4)
    for runtime in ("keras", "tflite", "onnx"):
        single_layer(layer, runtime, 2, 1)()


def test_a_call_of_a_keras_layer_makes_as_many_passes_as_it_is_asked_for():
    num_passes = []

    def count(images):
        num_passes.append(1)
        return images

    images = keras.Input((4, 4, 3))
    counted = keras.layers.Lambda(lambda x: tf.ensure_shape(tf.numpy_function(count, [x], tf.float32), x.shape))
    layer = single_layer(keras.Model(images, counted(images)), "keras", 2, 1)
    layer()
    assert len(num_passes) == 1
    layer.run(7)
    assert len(num_passes) == 8


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_keras_layer_is_timed_in_the_precision_that_it_has(policy):
    images = keras.Input((8, 8, 4))
    outputs = keras.layers.Conv2DTranspose(5, 3, strides=2, dtype=policy)(images)
    single_layer(keras.Model(images, outputs), "keras", 2, 1).run(3)


def test_many_keras_layers_bring_no_warning_of_tracing_too_often(caplog):
    tf.get_logger().addHandler(caplog.handler)
    try:
        for channels in range(1, 8):
            images = keras.Input((8, 8, channels))
            single_layer(keras.Model(images, keras.layers.Conv2D(4, 3)(images)), "keras", 2, 1).run(3)
    finally:
        tf.get_logger().removeHandler(caplog.handler)
    assert "retracing" not in caplog.text


def test_a_dense_layer_in_onnx_is_that_of_the_model():
    onnxruntime = pytest.importorskip("onnxruntime")
    model = flatten(small_mobilenet(32, 10))
    (call,) = [call for call in trace(model).calls if call.kind == "Dense"]
    layer = layer_at(model.get_layer(call.name), call, 5, 10)
    layer.get_layer("layer").bias.assign(np.random.default_rng(0).normal(size=10))
    features = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(layer_file(layer, "onnx", 2))
    (received,) = session.run(None, {"images": features})
    np.testing.assert_allclose(received, layer(features).numpy(), atol=1e-5)
    assert received.max() > 0


class Known:
    """A forward pass whose time is known: its multiply-adds."""

    def __init__(self, model, *_):
        graph = trace(model)
        self.milliseconds = 1e-5 * graph.macs.total(graph.widths) + 0.1


@pytest.fixture
def known_times(monkeypatch):
    monkeypatch.setattr(measure, "single_layer", Known)
    monkeypatch.setattr(measure, "whole_model", Known)
    are_for_a_sum = []

    def time_in_turn(runs, is_for_a_sum, **_):
        are_for_a_sum.append(is_for_a_sum)
        return [Median(run.milliseconds, 0.001) for run in runs]

    monkeypatch.setattr(measuring, "time_in_turn", time_in_turn)
    return are_for_a_sum


@pytest.mark.parametrize("runtime", ["tflite", "onnx"])
def test_the_table_predicts_the_times_of_whole_models(tmp_path, capsys, known_times, runtime):
    config = small_config(model={"name": "python:tests.networks:small_classifier"})
    path, costs = tmp_path / "config.yaml", tmp_path / "costs.json"
    path.write_text(config.to_yaml())
    assert main(["measure", str(path), "--runtime", runtime, "--threads", "1", "--output", str(costs)]) == 0
    printed = capsys.readouterr().out
    assert "kinds of 4 layers" in printed and "Do not aim" not in printed and "Not known well" not in printed
    assert known_times == [False, True, False], "blocks of channels, layers, whole models"
    table, _ = read_table(costs)
    assert set(table.versions) == {"numpy", *({"onnxruntime", "tf2onnx", "onnx"} if runtime == "onnx" else
                                              {"ai-edge-litert", "tensorflow"})}  # fmt: skip
    assert (table.runtime, table.num_threads, table.batch_size) == (runtime, 1, 1) and table.machine["cores"]
    assert len(table.checks) == 6 and worst_error(dataclasses.asdict(table)) < 0.03
    assert main(["inspect", str(path), "--set", "prune.target_macs_fraction=null",
                 "--set", f"prune.target={{latency_fraction: 0.8, costs: {costs}}}"]) == 0  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{table.base_ms:.4g} ms; target {0.8 * table.base_ms:.4g} ms (80.0 %); lowest possible" in printed
    assert "Parameters (of the merged model): " in printed and "Do not aim" not in printed
    # A machine that was busy while the whole models were timed.
    checks = [dataclasses.replace(check, measured_ms=2 * check.predicted_ms) for check in table.checks[:2]]
    dataclasses.replace(table, checks=(*checks, *table.checks[2:])).write(costs)
    assert main(["inspect", str(path), "--set", "prune.target_macs_fraction=null",
                 "--set", f"prune.target={{latency_fraction: 0.8, costs: {costs}}}"]) == 0  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    assert "the times of whole models are not the sum of their layers' there, but up to 50 % off" in printed
    # The table of a target of multiply-adds only shows the time.
    assert main(["inspect", str(path), "--set", "prune.target_macs_fraction=null",
                 "--set", f"prune.target={{macs_fraction: 0.8, costs: {costs}}}"]) == 0  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    assert "Latency (" in printed and "Do not aim" not in printed


def test_what_cannot_be_measured_is_refused(tmp_path, capsys, monkeypatch):
    config = small_config(model={"name": "python:tests.networks:small_classifier"})
    path = tmp_path / "config.yaml"
    document = json.loads(json.dumps(config.to_dict()))
    del document["prune"], document["base"]
    path.write_text(json.dumps(document))
    command = ["measure", str(path), "--runtime", "onnx", "--output", str(tmp_path / "costs.json")]
    assert main(command) == 2 and "no section `prune`" in capsys.readouterr().err
    path.write_text(config.to_yaml())
    command = ["measure", str(path), "--runtime", "onnx", "--output", str(tmp_path)]
    assert main(command) == 2 and f"--output {tmp_path}: cannot be written (Is a directory)" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="--runtime onnx: onnxruntime is missing; install it with"):
        require_runtime("onnx", 1)
    with pytest.raises(UserError, match="--threads 99: TensorFlow has started already"):
        keras.layers.Dense(1)(np.ones([1, 1], np.float32))
        require_runtime("keras", 99)
