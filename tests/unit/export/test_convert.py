"""Models in other formats: equal outputs, and refusals."""

import dataclasses
import json
import shutil
import subprocess
import sys

from resrep_dist.benchmark import benchmark_latency
from resrep_dist.cli.main import build_parser, main
from resrep_dist.data.normalization import IMAGENET
from resrep_dist.errors import CertificateError, ModelError, UserError
from resrep_dist.export import convert as export
from resrep_dist.export.convert import FORMATS, export_model
from resrep_dist.export.inference import as_keras_model, from_keras, load_any_model, open_model_file, open_program
from resrep_dist.models.files import save_model
from resrep_dist.reporting.usage import usage_of
from resrep_dist.training.evaluation import Evaluator
from tests.networks import random_source, randomise, small_config, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

IMAGES = random_source(40).images


def network():
    model = small_network()
    randomise(model)
    return model


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_gives_the_models_outputs_for_any_batch_and_evaluates_to_the_same(tmp_path, name):
    if name == "onnx":
        pytest.importorskip("tf2onnx", reason="the extra `onnx` is not installed")
    model, source = network(), random_source(50, seed=3)
    result = export_model(model, name, tmp_path, IMAGES, 1e-4)
    assert result.path.parent == tmp_path and [path.name for path in tmp_path.iterdir()] == [result.path.name]
    is_float16 = name == "tflite_float16"
    assert 0 <= result.max_relative_difference < (1e-2 if is_float16 else 1e-5)
    inference = open_model_file(result.path)
    assert inference.input_shape == (16, 16, 3) and inference.num_classes == 10
    for size in (1, 7, 40):
        expected = model(IMAGES[:size], training=False).numpy()
        tolerance = 0.02 * np.abs(expected).max() if is_float16 else 1e-4
        np.testing.assert_allclose(inference.run(IMAGES[:size]), expected, atol=tolerance)
    metrics = ["SparseCategoricalCrossentropy"]
    values = Evaluator(load_any_model(result.path, 16, 10), metrics).evaluate(source, 16)
    expected = Evaluator(model, metrics).evaluate(source, 16)
    assert values == pytest.approx(expected, rel=1e-2 if is_float16 else 1e-4)


def test_a_folder_is_given_as_text_too(tmp_path):
    result = export_model(network(), "tflite", f"{tmp_path}/new", IMAGES, 1e-4)
    assert result.path == tmp_path / "new" / "model.tflite" and result.path.is_file()


def two_in_three_out():
    """Two inputs and three outputs: classes, boxes, and a map whose layer's name no format can hold."""
    layers = keras.layers
    image, size = keras.Input([16, 16, 3], name="image"), keras.Input([2], name="size")
    x = layers.Conv2D(8, 3, activation="relu")(image)
    pooled = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), size])
    heads = [
        layers.Dense(3, name="class")(pooled),
        layers.Dense(4, name="box")(pooled),
        layers.Conv2D(2, 1, name="a/b")(x),
    ]
    model = keras.Model([image, size], heads)
    randomise(model)
    return model


@pytest.mark.parametrize("name", ["saved_model", "tflite", "onnx"])
def test_several_inputs_and_outputs_are_exported_and_compared_by_name(tmp_path, name):
    if name == "onnx":
        pytest.importorskip("tf2onnx", reason="the extra `onnx` is not installed")
    model, sizes = two_in_three_out(), np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    result = export_model(model, name, tmp_path, {"image": IMAGES, "size": sizes}, 1e-4)
    assert result.relative_differences.keys() == {"class", "box", "a_b"}
    assert max(result.relative_differences.values()) == result.max_relative_difference < 1e-5
    program = open_program(result.path)
    assert program.input_shapes == {"image": (16, 16, 3), "size": (2,)}
    received = program.run({"image": IMAGES[:7], "size": sizes[:7]})
    for output, expected in zip(("class", "box", "a_b"), model([IMAGES[:7], sizes[:7]]), strict=True):
        np.testing.assert_allclose(received[output], expected, atol=1e-4)
    with pytest.raises(ModelError, match="has 2 inputs and 3 outputs"):
        open_model_file(result.path)


def test_an_onnx_file_says_how_it_is_used(tmp_path):
    pytest.importorskip("tf2onnx", reason="the extra `onnx` is not installed")
    import onnx
    import onnxruntime

    config = small_config(data={"source": "imagefolder", "path": "photos", "normalization": "imagenet"})
    source = dataclasses.replace(random_source(8), scale=IMAGENET)
    usage = usage_of(config, source) | {"classes": ["cat", "dog"]}
    path = export_model(network(), "onnx", tmp_path, IMAGES, 1e-4, usage).path
    by_runtime = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert json.loads(by_runtime["usage"]) == usage
    assert {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props} == by_runtime
    assert json.loads(by_runtime["mean"]) == pytest.approx([123.675, 116.28, 103.53])
    assert json.loads(by_runtime["image_size"]) == [16, 16] and json.loads(by_runtime["classes"]) == ["cat", "dog"]
    assert by_runtime["channel_order"] == "RGB" and by_runtime["date"] == usage["date"]
    assert "2.21" in by_runtime["version_tf-keras"]


def test_on_a_gpu_with_tf32_the_comparison_is_in_full_float32(tmp_path, monkeypatch):
    is_enabled = tf.config.experimental.tensor_float_32_execution_enabled

    def open_on_a_gpu(path):
        program = open_program(path)
        # Rounding to 10 bits is worth this much.
        rounded = lambda arrays: {name: array * (1.0 + 1e-3 * is_enabled()) for name, array in arrays.items()}  # noqa: E731
        return dataclasses.replace(program, run=lambda arrays: rounded(program.run(arrays)))

    monkeypatch.setattr(export, "open_program", open_on_a_gpu)
    assert is_enabled()
    assert export_model(network(), "saved_model", tmp_path, IMAGES, 1e-4).max_relative_difference < 1e-5
    assert is_enabled()


def test_a_file_that_differs_is_refused_and_the_one_before_stays(tmp_path, monkeypatch):
    model = network()
    before = export_model(model, "tflite", tmp_path, IMAGES, 1e-4).path.read_bytes()

    def convert(model, path):
        other = small_network(seed=1)
        FORMATS["tflite"][1](other, path)

    monkeypatch.setitem(export.FORMATS, "wrong", ("model.tflite", convert, 0.0))
    with pytest.raises(CertificateError, match=r"model\.tflite: its outputs differ .* tolerance 0.0001; it is not"):
        export_model(model, "wrong", tmp_path, IMAGES, 1e-4)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_the_interpreter_says_nothing_of_its_kernels(tmp_path):
    path = export_model(network(), "tflite", tmp_path, IMAGES, 1e-4).path
    program = "import sys, numpy as np; from pathlib import Path\n"
    program += "from resrep_dist.export.inference import open_model_file\n"
    program += "print(open_model_file(Path(sys.argv[1])).run(np.zeros([2, 16, 16, 3], np.float32)).shape)"
    ran = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert "(2, 10)" in ran.stdout and "XNNPACK" not in ran.stderr


def test_probabilities_evaluate_like_the_model(tmp_path):
    model = network()
    model = keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))
    path = export_model(model, "tflite", tmp_path, IMAGES, 1e-4).path
    source, metrics = random_source(50, seed=3), ["SparseCategoricalCrossentropy"]
    values = Evaluator(load_any_model(path, 16, 10), metrics).evaluate(source, 16)
    assert values == pytest.approx(Evaluator(model, metrics).evaluate(source, 16), rel=1e-4)


@pytest.mark.parametrize("task", ["multilabel", "classification"])
def test_logits_that_look_like_probabilities_for_noise_of_one_scale_are_logits(task):
    keras.utils.set_random_seed(0)
    inputs = keras.Input([16, 16, 3])
    weights = keras.initializers.RandomNormal(stddev=0.05)
    outputs = keras.layers.Dense(2, kernel_initializer=weights, bias_initializer=keras.initializers.Constant(0.5))
    model = keras.Model(inputs, outputs(keras.layers.GlobalAveragePooling2D()(inputs)))
    noise = model(random_source(40).images).numpy()
    assert noise.min() >= 0 and noise.max() <= 1 and np.abs(noise.sum(-1) - 1).max() < 0.02
    images = random_source(8, seed=3).images
    logits = model(images).numpy()
    np.testing.assert_allclose(as_keras_model(from_keras(model), task)(images), logits, atol=1e-6)
    end = keras.layers.Activation("sigmoid" if task == "multilabel" else "softmax")
    received = as_keras_model(from_keras(keras.Model(inputs, end(model.output))), task)(images).numpy()
    # A softmax does not tell a number that is added to all logits.
    offset = 0.0 if task == "multilabel" else logits.mean(-1, keepdims=True) - received.mean(-1, keepdims=True)
    np.testing.assert_allclose(received + offset, logits, atol=1e-5)


def test_what_cannot_be_opened_or_converted_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "model.tflite").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"model\.tflite: cannot be opened"):
        open_model_file(tmp_path / "model.tflite")
    with pytest.raises(ModelError, match="there is no such file"):
        open_model_file(tmp_path / "model.onnx")

    def fail(model, path):
        raise ValueError("an operation\nof tomorrow")

    monkeypatch.setitem(export.FORMATS, "failing", ("x", fail, 0.0))
    with pytest.raises(ModelError, match=r"format failing: small cannot be converted \(an operation of tomorrow\)"):
        export_model(network(), "failing", tmp_path, IMAGES, 1e-4)
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(UserError, match=r"pip install 'resrep-dist\[onnx\]'"):
        export_model(network(), "onnx", tmp_path, IMAGES, 1e-4)
    path = export_model(network(), "saved_model", tmp_path, IMAGES, 1e-4).path
    save_model(network(), tmp_path / "model.h5")
    for file in (path, tmp_path / "model.h5"):
        with pytest.raises(
            ModelError, match=r"images of \(16, 16, 3\) and has 10 classes, expected \(32, 32, 3\) and 9"
        ):
            load_any_model(file, 32, 9)


def test_the_command_line_knows_every_format():
    for name in FORMATS:
        assert build_parser().parse_args(["export", "DIR", "--format", name]).formats == [name]


@pytest.fixture
def run_folder(tmp_path):
    """What `resrep train` leaves, as far as it matters here."""
    save_model(network(), tmp_path / "run" / "base" / "model.h5")
    save_model(small_network(), tmp_path / "run" / "slim" / "model.h5")
    (tmp_path / "run" / "config.yaml").write_text(small_config().to_yaml())
    return tmp_path / "run"


def test_the_commands_export_and_evaluate_a_run(run_folder, capsys, tmp_path):
    assert main(["export", str(run_folder), "--format", "tflite", "--format", "saved_model"]) == 0
    printed = capsys.readouterr().out
    assert "export/model.tflite" in printed.replace("\n", "") and "largest difference" in printed
    config = str(run_folder / "config.yaml")
    figures = []
    for name in ("slim/model.h5", "export/model.tflite", "export/saved_model"):
        # Nothing is trained, so the configuration need not say where weights come from.
        assert main(["evaluate", str(run_folder / name), "--config", config, "--set", "base=null"]) == 0
        figures.append(capsys.readouterr().out.split(" on 360 images")[0])
    assert len(set(figures)) == 1 and "top-1" in figures[0]
    elsewhere = tmp_path / "alone" / "model.h5"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes((run_folder / "slim" / "model.h5").read_bytes())
    assert main(["export", str(elsewhere), "--format", "tflite"]) == 2
    assert "--config: missing" in capsys.readouterr().err
    sets = ["--config", config, "--set", "base=null", "--set", "merge.num_images=300"]
    sets += ["--output", str(tmp_path / "out")]
    assert main(["export", str(elsewhere), "--format", "tflite", *sets]) == 0
    assert "on 300 images" in " ".join(capsys.readouterr().out.split()) and (tmp_path / "out" / "model.tflite").exists()


def test_no_export_goes_into_a_folder_that_a_merge_replaces(run_folder, capsys, monkeypatch):
    shutil.copytree(run_folder / "slim", run_folder / "final")
    for model in (run_folder / "slim", run_folder / "slim" / "model.h5", run_folder / "final"):
        assert main(["export", str(model), "--format", "tflite"]) == 0
        (run_folder / "export" / "model.tflite").unlink()
    monkeypatch.chdir(run_folder / "slim")
    for model in (".", "model.h5"):
        assert main(["export", model, "--format", "tflite"]) == 0
        (run_folder / "export" / "model.tflite").unlink()
    # The base is not replaced, and in the same folder it would overwrite the slim model's.
    assert main(["export", str(run_folder / "base"), "--format", "tflite"]) == 0
    assert {path.name for path in run_folder.rglob("*.tflite")} == {"model.tflite"}
    assert (run_folder / "base" / "model.tflite").exists()
    assert {path.name for path in run_folder.glob("[sf]*/*")} == {"model.h5"}


def test_only_an_earlier_export_is_replaced(run_folder, capsys, tmp_path):
    save_model(network(), tmp_path / "mine" / "model.h5")
    (tmp_path / "mine" / "saved_model").mkdir()
    (tmp_path / "mine" / "saved_model" / "notes.txt").write_text("mine")
    arguments = ["export", str(tmp_path / "mine"), "--config", str(run_folder / "config.yaml"), "--format", "tflite"]
    assert main([*arguments, "--format", "saved_model"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/mine/saved_model: it exists, and export.json beside it does not name it" in error
    assert "give another --output, or move it" in error and error.count("\n") == 1
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"model.h5", "saved_model"}
    assert (tmp_path / "mine" / "saved_model" / "notes.txt").read_text() == "mine"
    for _ in range(2):
        assert main(arguments) == 0
    # In a run's folders there may be exports of versions that kept no record.
    for folder in ("base", "slim", "export"):
        (run_folder / folder).mkdir(exist_ok=True)
        (run_folder / folder / "model.tflite").write_text("old")
        assert main(["export", str(run_folder), "--format", "tflite", "--output", str(run_folder / folder)]) == 0
        assert (run_folder / folder / "model.tflite").read_bytes() != b"old"


def test_what_cannot_be_written_is_said_in_one_line_and_what_was_there_stays(run_folder, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    arguments = ["export", str(run_folder), "--format", "tflite", "--output", str(tmp_path / "file")]
    assert main(arguments) == 2
    assert f"error: {tmp_path}/file: it is a file, expected a folder" in capsys.readouterr().err
    arguments[-1] = str(tmp_path / "file" / "out")
    assert main(arguments) == 2
    assert f"error: {tmp_path}/file/out/model.tflite: cannot be written (Not a directory)" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_the_usage_is_that_of_the_files_beside_it_and_replaces_none_of_the_users(run_folder, capsys, tmp_path):
    def export(*arguments, date):
        (run_folder / "slim" / "report.json").write_text(json.dumps({"usage": {"date": date}}))
        code = main(["export", str(run_folder), "--format", "tflite", *arguments])
        return code, capsys.readouterr().err

    usage, mine = run_folder / "export" / "usage.json", tmp_path / "mine"
    assert export(date="first")[0] == 0 and json.loads(usage.read_text()) == {"date": "first"}
    assert export("--set", "merge.tolerance=1e-12", date="second")[0] == 4
    assert json.loads(usage.read_text()) == {"date": "first"}
    assert export(date="third")[0] == 0 and json.loads(usage.read_text()) == {"date": "third"}
    assert {path.name for path in usage.parent.iterdir()} == {"model.tflite", "export.json", "usage.json"}
    mine.mkdir()
    (mine / "usage.json").write_text("mine")
    code, error = export("--output", str(mine), date="fourth")
    assert code == 2 and f"{mine}/usage.json: it exists, and without export.json beside it" in error
    assert [path.read_text() for path in mine.iterdir()] == ["mine"]
    (mine / "usage.json").unlink()
    for date in ("fifth", "sixth"):
        assert export("--output", str(mine), date=date)[0] == 0
        assert json.loads((mine / "usage.json").read_text()) == {"date": date}
    (tmp_path / "file").write_text("mine")
    code, error = export("--output", str(tmp_path / "file"), date="seventh")
    assert code == 2 and error.count("\n") == 1 and "file: it is a file, expected a folder" in error


def test_a_model_of_open_size_is_exported_at_the_size_of_the_configuration(run_folder, capsys):
    inputs = keras.Input([None, None, 3])
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    save_model(keras.Model(inputs, keras.layers.Dense(10)(x)), run_folder / "open" / "model.h5")
    assert main(["export", str(run_folder / "open"), "--format", "tflite"]) == 0
    assert "largest difference" in capsys.readouterr().out


def test_a_model_that_does_not_take_the_images_is_refused_in_one_line(run_folder, capsys, tmp_path):
    def refusal(model):
        save_model(model, tmp_path / "mine" / "model.h5")
        config = str(run_folder / "config.yaml")
        assert main(["export", str(tmp_path / "mine"), "--format", "saved_model", "--config", config]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and [path.name for path in (tmp_path / "mine").iterdir()] == ["model.h5"]
        return error

    assert "takes images of height, width and channels (32, 32, 3), but those of the configuration are (16, 16, 3)" in (
        refusal(small_network(image_size=32))
    )
    vectors = keras.Input([16])
    assert "channels (16,), but" in refusal(keras.Model(vectors, keras.layers.Dense(10)(vectors)))
    assert "it has 2 inputs, expected one, of images; export it in a program by resrep_dist.export_model" in (
        refusal(two_in_three_out())
    )


@pytest.mark.slow
@pytest.mark.parametrize("network", ["small_resnet", "grouped_classifier"])
def test_a_configuration_alone_is_pruned_at_random_to_its_target(tmp_path, network):
    path = tmp_path / "small.yaml"
    config = small_config(model={"name": f"python:tests.networks:{network}"})
    # Nothing is trained, so nothing says where its weights come from.
    path.write_text(dataclasses.replace(config, base=None).to_yaml())
    result = benchmark_latency(path, num_rounds=1)
    assert not result["is_trained"]
    assert 0.4 < result["macs"]["slim"] / result["macs"]["base"] <= 0.5
