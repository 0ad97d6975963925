"""Models in eight bits: what they lose is measured, and what loses too much is not written."""

import json
import sys

from resrep_dist.benchmark.inference_files import open_for_timing
from resrep_dist.cli.main import build_parser, main
from resrep_dist.data.order import training_batches
from resrep_dist.data.source import Source
from resrep_dist.errors import CertificateError, ModelError, UserError
from resrep_dist.export.convert import FORMATS
from resrep_dist.export.eight_bits import EIGHT_BIT_FORMATS, export_eight_bits, write_eight_bits
from resrep_dist.export.encoding import Encoding
from resrep_dist.export.inference import load_any_model, open_model_file, open_program
from resrep_dist.graph import trace
from resrep_dist.models.files import file_sha256, save_model
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.phase import plan_phase
from tests.networks import (
    label_network,
    pixel_network,
    random_source,
    randomise,
    small_config,
    small_network,
    sources_of,
)

import numpy as np
import pytest
from tensorflow import keras

CALIBRATION = random_source(32, seed=1).images
IMAGES = random_source(70, seed=2).images


@pytest.fixture(scope="module", params=EIGHT_BIT_FORMATS)
def name(request):
    if request.param == "onnx_int8":
        pytest.importorskip("tf2onnx", reason="the extra `onnx` is not installed")
    return request.param


def network(seed=0):
    model = small_network(seed)
    randomise(model, seed)
    return model


def classified_by(model, images=IMAGES):
    """A validation set on which a model is always right."""
    return Source(images, model(images, training=False).numpy().argmax(-1), 10)


def with_uneven_channels(model):
    """The same function, but the channels between the first two convolutions differ by a factor of 10,000."""
    factors = np.where(np.arange(8) % 2, 1.0, 1e4).astype(np.float32)
    batch_norm, convolution = model.get_layer("bn0"), model.get_layer("conv1")
    for weight in (batch_norm.gamma, batch_norm.beta):
        weight.assign(weight * factors)
    convolution.kernel.assign(convolution.kernel / factors[:, np.newaxis])
    return model


@pytest.fixture(scope="module")
def exported(name, tmp_path_factory):
    """A model, its validation set, and its export with a float input and output."""
    model, folder = network(), tmp_path_factory.mktemp("float")
    data = classified_by(model)
    # A folder as text; the other tests give a path.
    return model, data, export_eight_bits(model, name, str(folder), CALIBRATION, data, max_score_drop=100)


def test_a_file_is_compared_on_the_whole_validation_set_and_gives_those_outputs_for_any_batch(exported):
    model, data, result = exported
    assert [path.name for path in result.path.parent.iterdir()] == [result.path.name]
    assert result.num_images == 70 and result.num_calibration_images == 32 and result.encodings == {}
    assert result.score == "top1" and result.float_score == 100
    inference = open_model_file(result.path)
    expected = model(IMAGES, training=False).numpy()
    received = np.concatenate([inference.run(IMAGES[:1]), inference.run(IMAGES[1:8]), inference.run(IMAGES[8:])])
    differences = np.abs(expected - received)
    assert result.max_abs_difference == pytest.approx(differences.max(), rel=1e-3)
    assert result.mean_abs_difference == pytest.approx(differences.mean(), rel=1e-3)
    largest = np.abs(expected).max()
    assert result.max_relative_difference == pytest.approx(differences.max() / largest, rel=1e-3)
    assert 1e-4 < result.mean_relative_difference < 0.05
    is_equal = expected.argmax(-1) == received.argmax(-1)
    assert result.equal_classes == pytest.approx(is_equal.mean())
    assert result.eight_bit_score == pytest.approx(100 * is_equal.mean())


def test_a_file_evaluates_to_the_score_of_its_export(exported):
    _, data, result = exported
    assert Evaluator(load_any_model(result.path, 16, 10)).evaluate(data, 16)["top1"] == pytest.approx(
        result.eight_bit_score
    )


def test_all_weights_are_integers_per_channel(exported, name):
    path = exported[2].path
    if name == "tflite_int8":
        from ai_edge_litert.interpreter import Interpreter

        details = Interpreter(str(path)).get_tensor_details()
        kernels = [entry for entry in details if len(entry["quantization_parameters"]["scales"]) > 1]
        types = [np.dtype(entry["dtype"]) for entry in kernels if len(entry["shape"]) > 1]
        num_scales = {len(entry["quantization_parameters"]["scales"]) for entry in kernels}
    else:
        import onnx

        model = onnx.load(str(path))
        onnx.checker.check_model(model, full_check=True)
        assert {entry.domain for entry in model.opset_import} == {""}
        constants = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
        types = [value.dtype for value in constants.values() if value.ndim == 4]
        num_scales = {value.size for key, value in constants.items() if key.endswith("_scale") and value.size > 1}
    assert len(types) >= 3 and set(types) == {np.dtype("int8")}
    assert num_scales == {8, 12, 16, 10}


def test_integer_ends_say_which_numbers_they_stand_for(name, tmp_path, exported):
    model, data, of_float = exported
    result = export_eight_bits(model, name, tmp_path, CALIBRATION, data, has_integer_ends=True, max_score_drop=100)
    type_name = "int8" if name == "tflite_int8" else "uint8"
    assert set(result.encodings) == {"images", "outputs"}
    encodings = {key: Encoding(**values) for key, values in result.encodings.items()}
    assert {encoding.type_name for encoding in encodings.values()} == {type_name}
    assert result.eight_bit_score == pytest.approx(of_float.eight_bit_score, abs=3)
    # What a program without this package does.
    integers = encodings["images"].encode(IMAGES[:1])
    if name == "tflite_int8":
        from ai_edge_litert.interpreter import Interpreter

        received = Interpreter(str(result.path)).get_signature_runner()(images=integers)["outputs"]
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(result.path))
        assert json.loads(session.get_modelmeta().custom_metadata_map["encodings"]) == result.encodings
        (received,) = session.run(None, {"images": integers})
    assert integers.dtype == received.dtype == np.dtype(type_name)
    np.testing.assert_allclose(
        encodings["outputs"].decode(received), open_model_file(result.path).run(IMAGES[:1]), atol=1e-6
    )


def test_a_benchmark_encodes_its_images_once_and_decodes_nothing(name, tmp_path, exported, monkeypatch):
    path = tmp_path / EIGHT_BIT_FORMATS[name].file_name
    write_eight_bits(exported[0], name, path, CALIBRATION[:8], has_integer_ends=True)
    inference, num_encoded, encode = open_for_timing(path), [], Encoding.encode
    with monkeypatch.context() as patched:
        patched.setattr(Encoding, "encode", lambda self, a: num_encoded.append(len(a)) or encode(self, a))
        images = IMAGES[:3]
        first, again, other = inference.run(images), inference.run(images), inference.run(IMAGES[3:5])
    assert num_encoded == [3, 2] and np.array_equal(first, again)
    encoding = open_program(path).encodings["outputs"]
    for received, of_these in ((first, images), (other, IMAGES[3:5])):
        assert received.dtype == np.dtype(encoding.type_name)
        np.testing.assert_allclose(encoding.decode(received), open_model_file(path).run(of_these), atol=1e-6)


def test_what_loses_too_much_is_not_written_and_the_layer_that_loses_most_is_named(name, tmp_path, exported):
    model = with_uneven_channels(network())
    np.testing.assert_allclose(model(IMAGES), exported[0](IMAGES), atol=1e-3)
    (tmp_path / exported[2].path.name).write_text("the one before")
    with pytest.raises(
        CertificateError,
        match=r"top-1 \d+\.\d\d % in eight bits, 100\.00 % in float, a drop of more than 1 points; it is not written\. "
        r"Layers that lose most, .*: conv1 \(8\d\.\d %\), conv0 \(4\d\.\d %\), \w+ \(0\.\d %\)",
    ):
        export_eight_bits(model, name, tmp_path, CALIBRATION, classified_by(model))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the one before"]


def test_layers_that_cannot_be_found_do_not_hide_the_drop(tmp_path, monkeypatch):
    def fail(model, images, folder):
        raise RuntimeError("no debugger\nin this version")

    monkeypatch.setitem(EIGHT_BIT_FORMATS, "tflite_int8", EIGHT_BIT_FORMATS["tflite_int8"]._replace(layers_alone=fail))
    model = with_uneven_channels(network())
    with pytest.raises(CertificateError, match=r"not written\. The layers .* not be found \(no debugger in this"):
        export_eight_bits(model, "tflite_int8", tmp_path, CALIBRATION, classified_by(model))


def test_a_task_without_top1_is_judged_by_its_own_score(name, tmp_path):
    random = np.random.default_rng(0)
    for number, (model, labels, key) in enumerate(
        (
            (label_network(16, 4), random.integers(0, 2, [40, 4]), "mean_average_precision"),
            (pixel_network(16, 3), random.integers(0, 3, [40, 16, 16]), "mean_iou"),
        )
    ):
        randomise(model)
        data = Source(IMAGES[:40], labels, model.output_shape[-1])
        result = export_eight_bits(
            model, name, tmp_path / str(number), CALIBRATION, data, has_integer_ends=True, max_score_drop=100
        )
        assert result.score == key and 0.8 < result.equal_classes <= 1
        task = data.task
        expected = Evaluator(model, task=task).evaluate(data, 16)[key]
        assert result.float_score == pytest.approx(expected, abs=0.01)
        loaded = load_any_model(result.path, 16, model.output_shape[-1], task)
        assert Evaluator(loaded, task=task).evaluate(data, 16)[key] == pytest.approx(result.eight_bit_score, abs=1)


def test_probabilities_of_eight_bits_are_known_as_such(name, tmp_path):
    model = network()
    model = keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))
    data = classified_by(model)
    path = export_eight_bits(model, name, tmp_path, CALIBRATION, data, max_score_drop=100).path
    metrics = ["SparseCategoricalCrossentropy"]
    values = Evaluator(load_any_model(path, 16, 10), metrics).evaluate(data, 16)
    expected = Evaluator(model, metrics).evaluate(data, 16)
    assert values[metrics[0]] == pytest.approx(expected[metrics[0]], abs=0.1)


def test_what_cannot_be_calibrated_is_refused_in_one_line(tmp_path, monkeypatch):
    model, data = network(), random_source(8)
    with pytest.raises(UserError, match="calibration without images: received 0, expected at least 1"):
        export_eight_bits(model, "tflite_int8", tmp_path, CALIBRATION[:0], data)
    with pytest.raises(UserError, match="format int4: there is no such format; expected one of tflite_int8, onnx_int8"):
        export_eight_bits(model, "int4", tmp_path, CALIBRATION, data)
    with pytest.raises(UserError, match="--max-top1-drop nan: expected percentage points, 0 or more"):
        export_eight_bits(model, "tflite_int8", tmp_path, CALIBRATION, data, max_score_drop=float("nan"))
    two = keras.Model(model.inputs, [model.outputs[0], keras.layers.Dense(3)(model.outputs[0])])
    with pytest.raises(ModelError, match="1 inputs and 2 outputs, expected one of each"):
        export_eight_bits(two, "tflite_int8", tmp_path, CALIBRATION, data)
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization.shape_inference", None)
    with pytest.raises(UserError, match=r"format onnx_int8: .*pip install 'resrep-dist\[onnx\]'"):
        export_eight_bits(model, "onnx_int8", tmp_path, CALIBRATION, data)
    assert not list(tmp_path.iterdir())


def test_integers_without_a_meaning_are_not_opened(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    helper, of_integers = onnx.helper, onnx.TensorProto.UINT8
    ends = [helper.make_tensor_value_info(end, of_integers, [None, 4]) for end in ("images", "outputs")]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["outputs"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match=r"images is a tensor\(uint8\), and the file does not say which numbers"):
        open_program(tmp_path / "model.onnx")


def test_an_integer_stands_for_the_nearest_number_within_its_range():
    encoding = Encoding("int8", 0.5, -10)
    numbers = np.array([0.0, 0.6, -1.0, 1000.0, -1000.0], np.float32)
    integers = encoding.encode(numbers)
    assert integers.tolist() == [-10, -9, -12, 127, -128] and integers.dtype == np.int8
    decoded = encoding.decode(integers)
    assert decoded.tolist() == [0.0, 0.5, -1.0, 68.5, -59.0] and decoded.dtype == np.float32


def test_the_command_exports_and_evaluates_a_run_in_eight_bits(tmp_path, capsys):
    save_model(network(), tmp_path / "run" / "slim" / "model.h5")
    (tmp_path / "run" / "config.yaml").write_text(small_config().to_yaml())
    command = ["export", str(tmp_path / "run"), "--format", "tflite_int8"]
    sets = ["--num-calibration-images", "20", "--io", "integer", "--max-top1-drop", "100"]
    assert main([*command, "--format", "tflite", *sets]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "% in eight bits" in printed and "on 360 images" in printed and "calibrated on 20 images" in printed
    record = json.loads((tmp_path / "run" / "export" / "export.json").read_text())
    assert set(record) == {"model_int8.tflite", "model.tflite"} and record["model.tflite"]["argmax_agreement"] == 1
    in_eight_bits = record["model_int8.tflite"]
    assert in_eight_bits["model_sha256"] == file_sha256(tmp_path / "run" / "slim" / "model.h5")
    assert in_eight_bits["num_calibration_images"] == 20 and in_eight_bits["encodings"]["images"]["type_name"] == "int8"
    path = tmp_path / "run" / "export" / "model_int8.tflite"
    assert in_eight_bits["size_bytes"] == path.stat().st_size < record["model.tflite"]["size_bytes"]
    assert main(["evaluate", str(path), "--config", str(tmp_path / "run" / "config.yaml")]) == 0
    assert f"top-1 {in_eight_bits['eight_bit_score']:.2f} %" in capsys.readouterr().out
    for changed, expected in (
        (["--format", "int4"], "--format int4: there is no such format; expected one of saved_model, tflite,"),
        (["--num-calibration-images", "0"], "--num-calibration-images 0: there is no calibration without images"),
        (["--max-top1-drop", "-1"], "--max-top1-drop -1: expected percentage points, 0 or more"),
    ):
        assert main([*command, *changed]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
    assert main([*command, "--format", "tflite", *sets, "--set", "data.source=arrays"]) == 2


@pytest.mark.parametrize("changes", [{}, {"base": None, "prune": None}])
def test_the_command_calibrates_on_the_images_that_the_phase_sees_first(tmp_path, monkeypatch, changes):
    received = []

    def keep(model, name, folder, calibration_images, *_, **__):
        received.append(calibration_images)
        raise UserError("that was all")

    monkeypatch.setattr("resrep_dist.export.eight_bits.export_eight_bits", keep)
    config = small_config(seed=3, **changes)
    save_model(network(), tmp_path / "model.h5")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert main(["export", str(tmp_path), "--format", "tflite_int8", "--num-calibration-images", "20"]) == 2
    train_data, _ = sources_of(config)
    plan = plan_phase(config, trace(network()) if config.prune else None, len(train_data))
    place = {"rank": 0, "num_ranks": 1, "first_step": 0}
    batches = training_batches(train_data, global_batch_size=20, augmentation="none", seed=plan.seed, **place)
    np.testing.assert_array_equal(received[0], next(iter(batches))[0])


def test_a_damaged_record_is_said_in_one_line(tmp_path, capsys):
    save_model(network(), tmp_path / "model.h5")
    (tmp_path / "config.yaml").write_text(small_config().to_yaml())
    for text in ("{", "[]"):
        (tmp_path / "export.json").write_text(text)
        assert main(["export", str(tmp_path), "--format", "tflite"]) == 2
        assert "export.json: cannot be read or written" in capsys.readouterr().err


def test_the_help_names_every_format():
    commands = build_parser()._subparsers._group_actions[0].choices
    help_text = commands["export"].format_help()
    for format_name in (*FORMATS, *EIGHT_BIT_FORMATS):
        assert format_name in help_text
