"""`resrep measure --bundle`: the folder measures where neither TensorFlow nor this package can be imported."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile

from resrep_dist.benchmark.bundle import with_repeated_weights
from resrep_dist.cli.main import main
from resrep_dist.graph import trace
from resrep_dist.graph.latency import Latency
from resrep_dist.graph.latency_table import read_table
from resrep_dist.timing import runtimes
from resrep_dist.timing.bundle import read_bundle, write_task
from resrep_dist.timing.command import main as measure_here
from tests.networks import small_classifier, small_config

import numpy as np
import pytest

# Runs when Python starts.
BLOCK = """
import sys
for name in ("tensorflow", "tf_keras", "keras", "resrep_dist", "ai_edge_litert", "onnx"):
    sys.modules[name] = None
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(small_config(model={"name": "python:tests.networks:small_classifier"}).to_yaml())
    return path


@pytest.fixture(scope="module")
def bundle(config):
    folder = config.parent / "bundle"
    assert main(["measure", str(config), "--runtime", "onnx", "--threads", "1", "--bundle", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


def test_a_bundle_measures_without_tensorflow_and_its_table_is_a_target(config, copy, tmp_path, capsys):
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "block")}

    def run(*command):
        return subprocess.run(
            [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True, timeout=300
        )

    assert "ModuleNotFoundError" in run("-c", "import tensorflow").stderr
    assert "ModuleNotFoundError" in run("-c", "import resrep_dist").stderr
    result = run("measure.py", "--max-rounds", "8")
    assert result.returncode == 0, result.stderr
    costs = copy / "costs.json"
    assert f"File: {costs}" in result.stderr and "kinds of 4 layers; the base model takes" in result.stderr
    table, _ = read_table(costs)
    assert (table.runtime, table.num_threads, table.batch_size) == ("onnx", 1, 1) and table.machine["cores"]
    assert {"onnxruntime", "numpy", "tf2onnx"} <= set(table.versions) and len(table.checks) == 6
    assert {layer.key for layer in table.layers} == {call.key for call in trace(small_classifier(16, 10)).calls}
    capsys.readouterr()
    # How fast the narrowest model is depends on the machine: layers so small are lost in the noise of a busy one.
    status = main(["inspect", str(config), "--set", "prune.target_macs_fraction=null",
                   "--set", f"prune.target={{latency_fraction: 0.9, costs: {costs}}}"])  # fmt: skip
    output = " ".join(capsys.readouterr().out.split())
    assert f"{table.base_ms:.4g} ms; target" in output
    graph = trace(small_classifier(16, 10))
    lowest = Latency(table, graph, str(costs)).total([1] * len(graph.groups))
    assert status == (0 if lowest < 0.9 * table.base_ms else 2)


def test_equal_layers_are_there_once_and_a_readme_says_what_to_do(bundle):
    with zipfile.ZipFile(bundle / "models.zip") as archive:
        names = archive.namelist()
        sizes = {info.filename: (info.compress_size, info.file_size) for info in archive.infolist()}
    assert len(set(names)) == len(names) and {f"model{number}.onnx" for number in range(7)} <= set(names)
    layers = [sizes[name] for name in names if name.startswith("layer")]
    assert max(file for _, file in layers) > 2 * max(compressed for compressed, _ in layers)
    text = (bundle / "README.md").read_text()
    assert "pip install numpy onnxruntime" in text and "python measure.py" in text and "{model" not in text
    model = with_repeated_weights(small_classifier(16, 10))
    assert all(len(np.unique(weights)) <= 61 for weights in model.get_weights())


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda folder: (folder / "models.zip").unlink(), "models.zip: cannot be read"),
        (lambda folder: (folder / "task.json").write_text("{"), "task.json: no JSON"),
        (lambda folder: (folder / "task.json").write_text("{}"), "incomplete or was changed (KeyError('model'))"),
        (lambda folder: (folder / "models.zip").write_bytes(b"no archive"), "File is not a zip file"),
        (lambda folder: zipfile.ZipFile(folder / "models.zip", "a").writestr("x", "y"), "the checksum of its files"),
        (lambda folder: _change(folder, format=2), "it is of another version"),
        (lambda folder: _change(folder, batch_size=2), "the checksum of its files"),
        (lambda folder: (folder / "task.json").write_text("[]"), "incomplete or was changed (TypeError"),
        (lambda folder: _write_again(folder, runtime="torch"), "models.zip: it has no layer"),
    ],
)  # fmt: skip
def test_a_damaged_bundle_is_refused_in_one_line(copy, capsys, damage, expected):
    damage(copy)
    assert measure_here(copy, []) == 2
    error = capsys.readouterr().err
    assert expected in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (copy / "costs.json").exists()


def _change(folder, **changes):
    values = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(values | changes))


def _write_again(folder, **changes):
    """With a checksum that is right."""
    write_task(folder, dataclasses.replace(read_bundle(folder).task, **changes), {}, 1)


def test_a_missing_runtime_is_said_in_one_line(copy, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert measure_here(copy, []) == 2
    assert "onnxruntime is missing" in capsys.readouterr().err
    for name in ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"):
        monkeypatch.setitem(sys.modules, name, None)
    assert set(runtimes.require_runtime("tflite")) == {"tensorflow-lite", "numpy"}
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    _write_again(copy, runtime="tflite")
    assert measure_here(copy, []) == 2
    assert "there is no interpreter; install one with `pip install ai-edge-litert`" in capsys.readouterr().err


def test_what_cannot_be_written_is_refused(config, bundle, capsys, monkeypatch):
    command = ["measure", str(config), "--bundle", str(bundle), "--runtime"]
    assert main([*command, "keras"]) == 2
    assert "received --runtime keras, expected onnx or tflite" in capsys.readouterr().err
    assert main([*command, "onnx"]) == 2 and "give a new folder" in capsys.readouterr().err
    monkeypatch.setattr("resrep_dist.benchmark.timers._version", lambda name: None if name == "onnx" else "1")
    assert main([*command[:-2], f"{bundle}_new", "--runtime", "onnx"]) == 2
    assert "--runtime onnx: onnx missing; install it with" in capsys.readouterr().err


def test_a_bundle_keeps_what_is_measured(bundle):
    opened = read_bundle(bundle)
    assert opened.num_threads == 1 and opened.task.calls == trace(small_classifier(16, 10)).calls
    assert set(opened.task.behind) == {call.name for call in opened.task.calls} - {"logits"}
    assert opened.task.model_widths[0] == tuple(trace(small_classifier(16, 10)).widths)
