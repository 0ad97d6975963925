"""`resrep benchmark latency` of a run: all files, their sizes and scores, and the layers of the slim model."""

import json

from resrep_dist.benchmark import inference_files
from resrep_dist.benchmark.latency import print_latency_benchmark
from resrep_dist.benchmark.layer_times import measure_layers
from resrep_dist.cli.main import main
from resrep_dist.config import load_config
from resrep_dist.distributed.environment import visible_cores
from resrep_dist.errors import ConfigError
from resrep_dist.export.eight_bits import EIGHT_BIT_FORMATS, write_eight_bits
from resrep_dist.graph import trace
from resrep_dist.graph.latency import Latency
from resrep_dist.graph.latency_table import read_table
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.merging.folding import fold_model
from resrep_dist.merging.surgery import delete_channels
from resrep_dist.models.files import file_sha256, load_model, save_model
from tests.networks import random_source, small_config, small_network
from tests.tables import write_table

import numpy as np
import pytest
from tensorflow import keras

WIDTHS = [4, 6, 9]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a run leaves, as far as it matters here, with one export in eight bits and a table of times."""
    run = tmp_path_factory.mktemp("latency") / "run"
    base = small_network()
    graph = trace(base)
    dead = [np.arange(full) >= width for full, width in zip(graph.widths, WIDTHS, strict=True)]
    slim = delete_channels(fold_model(insert_compactors(base, graph), graph, dead), graph, dead)
    save_model(base, run / "base" / "model.h5")
    save_model(slim, run / "slim" / "model.h5")
    # The table was elsewhere when the run began, which keeps a copy.
    target = {"target_macs_fraction": None, "target": {"latency_fraction": 0.7, "costs": "/elsewhere/costs.json"}}
    config = small_config(model={"name": "python:tests.networks:small_classifier"}, prune=target)
    (run / "config.yaml").write_text(config.to_yaml())
    channels = {
        group.name: {"kept": width, "original": group.width} for group, width in zip(graph.groups, WIDTHS, strict=True)
    }
    (run / "slim" / "report.json").write_text(json.dumps({"certificate": {"channels": channels}}))
    (run / "export").mkdir()
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    write_eight_bits(slim, "tflite_int8", run / "export" / "model_int8.tflite", images, has_integer_ends=True)
    record = {"model_sha256": file_sha256(run / "slim" / "model.h5"), "eight_bit_score": 97.5}
    # That in ONNX is of a model before the last merge.
    records = {"model_int8.tflite": record, "model_int8.onnx": record | {"model_sha256": "0"}}
    (run / "export" / "export.json").write_text(json.dumps(records))
    write_table(graph, run / "costs.json")
    return run


@pytest.fixture(scope="module")
def result(run):
    assert main(["benchmark", "latency", str(run), "--num-rounds", "2"]) == 0
    return json.loads((run / "benchmark.json").read_text())["latency"]


def test_base_and_slim_are_measured_in_every_format_with_their_spreads(result):
    formats = {row["format"] for row in result["rows"]}
    assert {"keras", "saved_model", "tflite", "tflite_float16", "tflite_int8"} <= formats
    assert len(result["rows"]) == 2 * len(formats)
    for row in result["rows"]:
        assert row["base_ms"] > 0 and row["slim_ms"] > 0 and min(row["base_spread"], row["slim_spread"]) >= 0
        assert row["speedup"] == pytest.approx(row["base_ms"] / row["slim_ms"])
    assert result["is_trained"] and result["num_rounds"] == 2


def test_files_have_their_size_and_those_in_eight_bits_the_score_of_their_export(run, result):
    files = {(file["format"], file["model"]): file for file in result["files"]}
    assert files["keras", "base"]["size_bytes"] == (run / "base" / "model.h5").stat().st_size
    assert files["tflite_int8", "slim"]["size_bytes"] == (run / "export" / "model_int8.tflite").stat().st_size
    assert {key for key, file in files.items() if file["score"] is not None} == {("tflite_int8", "slim")}
    assert files["tflite_int8", "slim"]["score"] == 97.5
    assert all(file["size_bytes"] > 0 for file in files.values())
    assert result["slim_sha256"] == file_sha256(run / "slim" / "model.h5")


def test_of_a_file_with_integer_ends_the_file_alone_is_timed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_files, "FORMATS", {})
    monkeypatch.setattr(inference_files, "EIGHT_BIT_FORMATS", {"tflite_int8": EIGHT_BIT_FORMATS["tflite_int8"]})
    path = run / "slim" / "model.h5"
    _, file = inference_files.files_in_every_format({"slim": load_model(path)}, {"slim": path}, tmp_path, run)
    assert file.score == 97.5 and file.inference.run(random_source(2).images).dtype == np.int8


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_the_layers_of_the_slim_model_are_measured_beside_what_the_table_says(tmp_path, run, result, runtime):
    if runtime == "onnx":
        pytest.importorskip("onnxruntime")
        layers = result["layers"]
    else:
        costs = write_table(trace(small_network()), tmp_path / "costs.json", runtime="tflite", num_threads=1, scale=2.0)
        models = {name: load_model(run / name / "model.h5") for name in ("base", "slim")}
        report = json.loads((run / "slim" / "report.json").read_text())
        layers = measure_layers(models, load_config(run / "config.yaml"), report, costs, max_rounds=2)
    assert (layers["runtime"], layers["is_in_place"]) == (runtime, runtime == "onnx")
    assert [row["name"] for row in layers["rows"]] == ["conv0", "conv1", "conv2", "logits"]
    assert all(row["measured_ms"] > 0 for row in layers["rows"])
    graph = trace(small_network())
    table, _ = read_table(run / "costs.json")
    predicted = [row["predicted_ms"] / (1 if runtime == "onnx" else 2) for row in layers["rows"]]
    assert predicted == pytest.approx(list(Latency(table, graph, "").by_layer(WIDTHS).values()))
    assert layers["predicted_ms"] == pytest.approx(sum(row["predicted_ms"] for row in layers["rows"]) + 0.5)
    if runtime == "onnx":
        # What the profiler adds is taken off, of four layers a part of the whole.
        assert sum(row["measured_ms"] for row in layers["rows"]) < 3 * layers["slim_ms"]


def test_layers_with_a_slash_in_their_names_are_found_under_those_of_the_files(tmp_path):
    # As in keras.applications' MobileNetV3. Files have `_` in place of `/`, the configuration and the report do not.
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input([16, 16, 3])
    for index in range(3):
        x = keras.layers.Conv2D(8, 3, 2, "same", activation="relu", name=f"block/conv{index}")(x)
    base = keras.Model(inputs, keras.layers.Dense(10, name="logits")(keras.layers.Flatten()(x)))
    graph = trace(base, exclude=["block/conv1"])
    dead = [np.arange(group.width) >= 4 for group in graph.groups]
    slim = delete_channels(fold_model(insert_compactors(base, graph), graph, dead), graph, dead)
    save_model(base, tmp_path / "base.h5")
    save_model(slim, tmp_path / "slim.h5")
    models = {name: load_model(tmp_path / f"{name}.h5") for name in ("base", "slim")}
    report = {"certificate": {"channels": {group.name: {"kept": 4, "original": 8} for group in graph.groups}}}
    config = small_config(prune={"exclude": ["block/conv1"]})
    costs = write_table(graph, tmp_path / "costs.json", runtime="tflite", num_threads=1)
    rows = measure_layers(models, config, report, costs, max_rounds=1)["rows"]
    assert [row["name"] for row in rows] == ["block_conv0", "block_conv1", "block_conv2", "logits"]
    expected = Latency(read_table(costs)[0], graph, "").by_layer([4, 4])
    assert [row["predicted_ms"] for row in rows] == pytest.approx(list(expected.values()))
    assert all(row["measured_ms"] > 0 for row in rows)


def test_a_table_of_other_threads_of_tensorflow_predicts_nothing(tmp_path, run, caplog):
    num_threads = visible_cores() + 1
    costs = write_table(trace(small_network()), tmp_path / "costs.json", runtime="keras", num_threads=num_threads)
    models = {name: load_model(run / name / "model.h5") for name in ("base", "slim")}
    report = json.loads((run / "slim" / "report.json").read_text())
    layers = measure_layers(models, load_config(run / "config.yaml"), report, costs, max_rounds=2)
    assert f"was measured with {num_threads} thread(s), and TensorFlow runs with {visible_cores()} here" in caplog.text
    assert layers["num_threads"] == visible_cores() and layers["table"] is None and layers["predicted_ms"] is None
    assert all(row["measured_ms"] > 0 and row["predicted_ms"] is None for row in layers["rows"])


def test_times_that_are_not_known_well_are_said(result, capsys):
    from rich.console import Console

    known = {**result, "rows": [{**row, "base_spread": 0.01, "slim_spread": 0.01} for row in result["rows"]]}
    print_latency_benchmark(Console(), known)
    assert "Not known well" not in capsys.readouterr().out
    known["rows"][0]["slim_spread"] = 0.3
    print_latency_benchmark(Console(), known)
    num_medians = 2 * len(known["rows"])
    assert f"Not known well: 1 of {num_medians} medians vary by more than 4 %" in capsys.readouterr().out


def test_a_run_that_pruned_nothing_has_no_slim_model_to_compare(tmp_path, capsys):
    assert main(["benchmark", "latency", str(tmp_path)]) == 2
    assert "there is no such file; give a finished run of `resrep train`" in capsys.readouterr().err
    save_model(small_network(), tmp_path / "final" / "model.h5")
    assert main(["benchmark", "latency", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}: this run pruned nothing" in error and "there is no slim model to compare" in error


def test_a_table_of_another_model_is_refused_before_the_measurement(tmp_path, run, capsys):
    other = write_table(trace(small_network(image_size=24)), tmp_path / "costs.json")
    models = {name: load_model(run / name / "model.h5") for name in ("base", "slim")}
    report = json.loads((run / "slim" / "report.json").read_text())
    with pytest.raises(ConfigError, match="it is of another model"):
        measure_layers(models, load_config(run / "config.yaml"), report, other, max_rounds=1)
    assert main(["benchmark", "latency", str(run / "config.yaml"), "--costs", other]) == 2
    assert "received with a configuration, expected it with the folder of a run" in capsys.readouterr().err
