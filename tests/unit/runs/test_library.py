"""One call in a Python program."""

import json

import resrep_dist
from resrep_dist.cli.main import main
from resrep_dist.data.arrays import open_sets
from resrep_dist.errors import ConfigError, DataError, HostError, ModelError
from resrep_dist.reporting.run_folder import read_runs
from resrep_dist.reporting.verdict import verdict
from tests.networks import random_source, small_config, small_network

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

QUIET = {"prune": {"min_base_top1": 0}, "logging": {"evaluation_epochs": 1.0}}


def with_softmax():
    model = small_network()
    return keras.Model(model.inputs, keras.layers.Softmax()(model.output), name="probabilities")


def test_arrays_and_a_model_give_a_slim_one_its_proof_and_its_history(tmp_path, capsys):
    training, validation = random_source(), random_source(64, seed=1)
    one_hot = np.eye(10, dtype=np.float32)[training.labels]
    batches = tf.data.Dataset.from_tensor_slices((validation.images, validation.labels)).batch(24)
    call = {"target": 0.6, "num_epochs": 3, "settings": QUIET, "workdir": tmp_path / "run"}
    result = resrep_dist.prune(with_softmax(), (training.images, one_hot), batches, **call)
    report = result.report
    assert report["slim"]["macs"] <= 0.6 * report["base"]["macs"] and not report["target_missed"]
    assert result.certificate.max_relative_difference < 1e-4 and result.certificate.num_images == 64
    assert [values["step"] for values in result.history] == [10, 20, 30]
    assert result.history[-1]["top1"] == pytest.approx(report["slim"]["top1"], abs=2)
    assert not isinstance(result.slim.layers[-1], keras.layers.Softmax)
    # The folder is that of a run: its page can be written, and the same call finds it finished.
    assert json.loads((tmp_path / "run" / "slim" / "report.json").read_text()) == report
    (run,) = read_runs([tmp_path / "run"])
    assert "% fewer multiply-adds, " in verdict(run.report) and run.curves["validation/top1"]
    assert report["usage"]["data"]["num_validation_images"] == 64
    assert resrep_dist.load_config(tmp_path / "run" / "config.yaml").prune.round_to == 4
    again = resrep_dist.prune(with_softmax(), (training.images, one_hot), batches, **call)
    assert again.report == report and again.history == []
    with pytest.raises(ConfigError, match="prune.target_macs_fraction is 0.6 there and 0.7 here"):
        resrep_dist.prune(with_softmax(), (training.images, one_hot), batches, **call | {"target": 0.7})
    export = ["export", str(tmp_path / "run"), "--format", "saved_model"]
    assert main(export) == 2
    assert "and add --set data.source=npz --set data.path=FILE, or give a --config" in capsys.readouterr().err
    test = {"x_test": validation.images, "y_test": validation.labels}
    np.savez(tmp_path / "data.npz", x_train=training.images, y_train=training.labels, **test)
    settings = ["data.source=npz", f"data.path={tmp_path / 'data.npz'}"]
    assert main([*export, *(f"--set={setting}" for setting in settings)]) == 0
    config = resrep_dist.load_config(tmp_path / "run" / "config.yaml", settings)
    (tmp_path / "mine.yaml").write_text(config.to_yaml())
    assert main([*export, "--config", str(tmp_path / "mine.yaml")]) == 0


def test_images_that_are_no_squares_are_pruned_in_a_folder_and_merged_again(tmp_path, capsys):
    random = np.random.default_rng(0)
    scale = {"mean": [128.0] * 3, "std": [64.0] * 3}
    data = [
        resrep_dist.Source(random.integers(0, 256, [size, 8, 16, 3]), random.integers(0, 10, size), 10, **scale)
        for size in (64, 32)
    ]
    inputs = keras.Input([8, 16, 3])
    x = keras.layers.ReLU()(keras.layers.Conv2D(8, 3, name="conv0")(inputs))
    x = keras.layers.ReLU()(keras.layers.Conv2D(8, 3, name="conv1")(x))
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
    settings = {"prune": {"min_base_top1": 0, "max_extension_epochs": 0}}
    call = {"target": 0.7, "num_epochs": 2, "settings": settings, "workdir": tmp_path / "run", "console": None}
    report = resrep_dist.prune(model, *data, **call).report
    assert report["slim"]["macs"] < report["base"]["macs"] and report["certificate"]["num_images"] == 32
    assert report["usage"]["pixels"]["image_size"] == [8, 16]
    assert resrep_dist.prune(model, *data, **call).report == report
    keras.utils.save_img(tmp_path / "image.png", np.zeros([8, 16, 3]))
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "image.png")]) == 2
    assert "its model takes images of 8 x 16 pixels, but `resrep predict` crops squares" in capsys.readouterr().err


class Scaled(keras.layers.Layer):
    """A layer that our files do not know."""

    def call(self, inputs):
        return 2.0 * inputs


def test_a_model_that_cannot_be_read_from_a_file_is_refused_before_it_is_trained(tmp_path):
    base, data = small_network(), (random_source(), random_source(64, seed=1))
    inputs = keras.Input(base.input_shape[1:])
    model = keras.Model(inputs, base(Scaled()(inputs)))
    call = {"target": 0.6, "num_epochs": 1, "settings": QUIET}
    with pytest.raises(ModelError, match="Scaled.* without `workdir` no file is needed"):
        resrep_dist.prune(model, *data, workdir=tmp_path / "run", **call)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert any("scaled" in layer.name for layer in resrep_dist.prune(model, *data, **call).slim.layers)


def test_what_cannot_be_pruned_is_refused_in_words():
    training, validation = random_source(64), random_source(64, seed=1)
    with pytest.raises(ModelError, match="so it is not pruned"):
        resrep_dist.prune(small_network(), training, validation, num_epochs=3, console=None)
    with pytest.raises(DataError, match=r"one-hot labels \[N, 10\] as the model has 10 outputs"):
        resrep_dist.prune(small_network(), (training.images, np.zeros([64, 7])), validation)
    column = training.labels[:, np.newaxis]
    # Labels [N, height, width] are masks, for a model that returns maps.
    with pytest.raises(DataError, match=r"received arrays of shapes \(64, 16, 16, 3\) and \(64, 1, 1\)"):
        resrep_dist.prune(small_network(), (training.images, column[..., np.newaxis]), validation)
    with pytest.raises(DataError, match=r"received a ndarray, expected a Source, a pair \(images, labels\)"):
        resrep_dist.prune(small_network(), training.images, training.labels)
    with pytest.raises(DataError, match="expected labels from 0 to 9, received 1 to 10"):
        resrep_dist.prune(small_network(), (training.images, column + 1), validation)
    endless = tf.data.Dataset.from_tensor_slices((training.images, training.labels)).repeat()
    with pytest.raises(DataError, match="the dataset is endless"):
        resrep_dist.prune(small_network(), endless, validation)
    named = tf.data.Dataset.from_tensor_slices(({"image": training.images}, training.labels))
    with pytest.raises(DataError, match="a dataset of .*image.*, expected pairs of images and labels"):
        resrep_dist.prune(small_network(), named, validation)


@pytest.mark.parametrize(
    "train, validation, task",
    [
        ([[1, 0, 0], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]], "multilabel"),
        ([[1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0]], "multilabel"),
        ([[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]], "classification"),
        ([[1, 0, 0], [0, 1, 0]], [0, 2], "classification"),
        ([[0.9, 0.1, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 1]], "classification"),
    ],
)
def test_both_sets_say_whether_rows_are_one_hot(train, validation, task):
    images = np.zeros([2, 16, 16, 3])
    sets = [(images, np.array(labels)) for labels in (train, validation)]
    assert [source.task for source in open_sets(sets, (None, 3))] == [task] * 2
    if task == "multilabel":
        both = [resrep_dist.Source(images, np.array(train), 3), sets[1]]
        assert [source.task for source in open_sets(both, (None, 3))] == [task] * 2


@pytest.mark.parametrize(
    "settings, is_deterministic",
    [({}, True), ({"training": {"deterministic": False}}, False), ({"training": {"precision": "mixed_float16"}}, True)],
)
def test_the_ranks_start_with_the_sums_that_the_settings_ask_for(monkeypatch, settings, is_deterministic):
    started = []

    def start(cluster, deterministic=True):
        started.append(deterministic)
        raise HostError("no ranks here", 0)

    monkeypatch.setattr(resrep_dist.Cluster, "__init__", start)
    with pytest.raises(HostError):
        resrep_dist.prune(small_network(), random_source(8), random_source(8), settings=settings)
    overrides = [f"--set=training.{name}={value}" for name, value in settings.get("training", {}).items()]
    assert main(["prune", "mine.h5", "--data", "photos", *overrides]) == HostError.exit_code
    assert started == [is_deterministic] * 2


def test_models_that_are_no_classifiers_of_keras_2_are_refused_in_words():
    data = random_source(8)
    for model in ("mine.keras", keras3.Sequential([keras3.Input([16, 16, 3]), keras3.layers.Dense(10)])):
        for call in (
            lambda model=model: resrep_dist.prune(model, data, data),
            lambda model=model: resrep_dist.Trainer(model, None, small_config(), data, data, console=None),
            lambda model=model: resrep_dist.trace(model),
        ):
            with pytest.raises(ModelError, match=r"expected a Keras 2 model; resrep_dist.load_model\(path\) reads one"):
                call()
    model = small_network()
    two = keras.Model(model.inputs, [model.output, model.output])
    with pytest.raises(ModelError, match="received 1 inputs and 2 outputs, expected one of each"):
        resrep_dist.prune(two, data, data)
    with pytest.raises(ModelError, match="its output is a single number"):
        resrep_dist.prune(small_network(num_classes=1), data, data)
