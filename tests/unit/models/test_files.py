"""Files of both Keras: loaded with equal outputs, written so that both read them, and never run."""

import json
import os
import subprocess
import sys
import zipfile

import resrep_dist
from resrep_dist.config import ModelConfig
from resrep_dist.errors import ModelError
from resrep_dist.graph import flatten, trace
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.models.building import build_model
from resrep_dist.models.files import load_model, load_weights, save_model
from tests import keras_files
from tests.networks import randomise, small_network

import h5py
import numpy as np
import pytest
from tensorflow import keras

KERAS_3_READS = """
import sys, numpy as np, keras
model = keras.models.load_model(sys.argv[1], compile=False)
np.save(sys.argv[2], model.predict(np.load(sys.argv[3]), verbose=0))
"""


def run_keras_3(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment | {"KERAS_BACKEND": "tensorflow"},
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of both generations of Keras, and hostile ones."""
    folder = tmp_path_factory.mktemp("files")
    run_keras_3(keras_files.__file__, folder)
    for network in keras_files.NETWORKS:
        keras_files.write(keras, network, folder, f"keras2_{network}")
    return folder


def test_a_program_loads_files_of_either_keras_and_is_told_what_cannot_be_loaded(folder, tmp_path):
    for version in ("keras2", "keras3"):
        assert isinstance(resrep_dist.load_model(f"{folder}/{version}_sequential.keras"), keras.Model)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ModelError, match=r"it is a SavedModel.*save it by model.save\('model.keras'\)"):
        resrep_dist.load_model(tmp_path)


def test_a_program_saves_a_model_by_a_path_as_text(tmp_path):
    model = small_network()
    resrep_dist.save_model(model, f"{tmp_path}/new/model.h5")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.h5"]
    for saved, weights in zip(load_model(tmp_path / "new" / "model.h5").weights, model.weights, strict=True):
        np.testing.assert_array_equal(saved, weights)


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("network", keras_files.NETWORKS)
@pytest.mark.parametrize("version", ["keras2", "keras3"])
def test_a_file_of_either_keras_gives_the_same_outputs(folder, version, network, ending):
    model = load_model(folder / f"{version}_{network}.{ending}")
    outputs = model.predict(keras_files.images(), verbose=0)
    assert np.abs(outputs - np.load(folder / f"{version}_{network}.npy")).max() < 1e-5
    if network == "branched":
        assert not model.get_layer("norm").trainable
        assert model.get_layer("separable").activation is keras.activations.linear


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_operations_of_keras_3_become_layers(folder, ending):
    model = load_model(folder / f"keras3_operations.{ending}")
    outputs = model.predict(keras_files.images(), verbose=0)
    assert np.abs(outputs - np.load(folder / "keras3_operations.npy")).max() < 1e-5
    assert {group.name for group in trace(model).groups} == {"wide"}


@pytest.mark.parametrize("ending", ["keras", "h5", "weights.h5"])
@pytest.mark.parametrize("version", ["keras2", "keras3"])
def test_weights_of_either_keras_go_into_a_model(folder, version, ending):
    model = keras_files.branched(keras)
    load_weights(model, folder / f"{version}_branched.{ending}")
    outputs = model.predict(keras_files.images(), verbose=0)
    assert np.abs(outputs - np.load(folder / f"{version}_branched.npy")).max() < 1e-5


def test_weights_go_in_by_order_where_the_names_are_others(folder):
    layers = [keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3, name="other"), keras.layers.Activation("relu")]
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10, name="names")])
    for version in ("keras2", "keras3"):
        load_weights(model, folder / f"{version}_sequential.h5")
        outputs = model.predict(keras_files.images(), verbose=0)
        assert np.abs(outputs - np.load(folder / f"{version}_sequential.npy")).max() < 1e-5


def uneven(image_size=16, num_classes=10):
    """Branches of equal shapes whose layers change places when activations become layers."""
    layers = keras.layers
    inputs = keras.Input((image_size, image_size, 3))
    stem = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(stem)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(stem))
    y = layers.Conv2D(8, 3, padding="same")(y)
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()([x, y]))
    return keras.Model(inputs, layers.Dense(num_classes, activation="softmax")(x))


def test_weights_without_names_go_where_keras_puts_them_although_the_flat_model_has_another_order(tmp_path):
    keras.layers.Conv2D(4, 3)
    keras.layers.Dense(4)
    theirs = uneven()
    randomise(theirs)
    theirs.save(tmp_path / "model.keras")
    for name in ("weights.weights.h5", "weights.h5"):
        theirs.save_weights(tmp_path / name)
    expected = keras.Model(theirs.input, theirs.layers[-2].output).predict(keras_files.images(), verbose=0)
    kernel, bias = theirs.layers[-1].get_weights()
    config = ModelConfig("python:tests.unit.models.test_files:uneven", 10, 16)
    for name in ("model.keras", "weights.weights.h5", "weights.h5"):
        flat = build_model(config)
        # The `.h5` has names, but others.
        assert not {layer.name for layer in flat.layers} >= {layer.name for layer in theirs.layers if layer.weights}
        load_weights(flat, tmp_path / name)
        np.testing.assert_allclose(
            flat.predict(keras_files.images(), verbose=0), expected @ kernel + bias, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_weights_without_names_of_a_flat_model_in_another_order_are_refused(tmp_path, ending):
    flat = flatten(uneven())
    flat.save(tmp_path / "flat.keras")
    flat.save_weights(tmp_path / "flat.weights.h5")
    received = flatten(uneven())
    before = received.get_weights()
    with pytest.raises(ModelError, match="the order of 13 layers is not known: .* has 10, taken apart 13; save .* .h5"):
        load_weights(received, tmp_path / f"flat.{ending}")
    for old, new in zip(before, received.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("lambda.keras", "layer plant is a Lambda"),
        ("lambda.h5", "layer plant is a Lambda"),
        ("custom.keras", "layer plant is a Planted"),
        ("custom.h5", "layer plant is a stranger>Planted"),
        ("nested.keras", "is a model inside the model"),
    ],
)
def test_code_in_a_file_is_refused_and_not_run(folder, name, expected):
    with pytest.raises(ModelError, match=expected) as error:
        load_model(folder / name)
    assert "\n" not in str(error.value)
    assert not (folder / "ran").exists()


def changed(folder, tmp_path, change):
    """A Keras 3 file whose architecture `change` has altered."""
    path = tmp_path / "changed.keras"
    with zipfile.ZipFile(folder / "keras3_branched.keras") as source, zipfile.ZipFile(path, "w") as target:
        document = json.loads(source.read("config.json"))
        layers = {entry["config"]["name"]: entry for entry in document["config"]["layers"]}
        change(document["config"], layers)
        target.writestr("config.json", json.dumps(document))
        for name in ("metadata.json", "model.weights.h5"):
            target.writestr(name, source.read(name))
    return path


CIRCLE = {"keras_history": ["logits", 0, 0]}
SYSTEM = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda config, entry: entry["shared"]["config"].update(filters=10**9), "the file holds"),
        (lambda config, entry: entry["shared"]["config"].update(filters="many"), "layer shared"),
        (lambda config, entry: entry["shared"]["config"].update(activation=SYSTEM), "its activation system"),
        (lambda config, entry: entry["shared"]["config"].update(activation="hard_sigmoid"), "activation hard_sigmoid"),
        (lambda config, entry: entry["shared"]["config"].update(lora_rank=4), "lora_rank=4 is not known"),
        (lambda config, entry: entry["shared"]["config"].update(strides={"class_name": "x"}), "not plain data"),
        (
            lambda config, entry: entry["shared"]["config"]["kernel_initializer"].update(class_name="System"),
            "its initializer System is not one of Keras' own",
        ),
        (lambda config, entry: entry["shared"].update(registered_name="x>Conv2D"), "which is not loaded from a file"),
        (lambda config, entry: entry["shared"].update(module="os"), "which is not loaded from a file"),
        (lambda config, entry: entry["logits"]["inbound_nodes"][0]["args"][0]["config"].update(CIRCLE), "cycle"),
        (lambda config, entry: entry["logits"]["config"].update(dtype="string"), "received type 'string'"),
        (lambda config, entry: entry["logits"]["config"].update(name="shared"), "have one name"),
        (lambda config, entry: config.update(layers=5), "not a Keras file"),
        (lambda config, entry: config.update(output_layers=["nothing", 0, 0]), "its layer nothing is missing"),
    ],
)  # fmt: skip
def test_an_architecture_that_was_tampered_with_is_refused_in_one_line(folder, tmp_path, change, expected):
    with pytest.raises(ModelError) as error:
        load_model(changed(folder, tmp_path, change))
    assert expected in str(error.value) and "\n" not in str(error.value)


def damaged_files(folder, tmp_path):
    whole = (folder / "keras3_branched.keras").read_bytes()
    hdf5 = (folder / "keras3_branched.h5").read_bytes()
    for name, content in {
        "empty.keras": b"",
        "text.h5": b"not a model",
        "cut.keras": whole[: len(whole) // 2],
        "cut.h5": hdf5[: len(hdf5) // 2],
    }.items():
        (tmp_path / name).write_bytes(content)
        yield tmp_path / name
    yield tmp_path / "missing.h5"
    with zipfile.ZipFile(tmp_path / "no_config.keras", "w") as file:
        file.writestr("../../metadata.json", "{}")
    yield tmp_path / "no_config.keras"
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", "{}")
        file.writestr("metadata.json", "{}")
        file.writestr("model.weights.h5", bytes(1 << 27))
    yield tmp_path / "bomb.keras"


def test_damaged_files_and_bombs_are_refused_in_one_line(folder, tmp_path):
    for path in damaged_files(folder, tmp_path):
        for load in (load_model, lambda path: load_weights(keras_files.sequential(keras), path)):
            with pytest.raises(ModelError, match=path.name) as error:
                load(path)
            assert "\n" not in str(error.value)


def rewritten(folder, tmp_path, change):
    """A Keras 2 HDF5 file whose arrays `change` has altered."""
    path = tmp_path / "rewritten.h5"
    path.write_bytes((folder / "keras2_sequential.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        group = file["model_weights"]
        layer = next(name for name in group if len(group[name].attrs["weight_names"]))
        group, name = group[layer], group[layer].attrs["weight_names"][0]
        change(group, name)
    return path


def link_outside(group, name):
    del group[name]
    group[name] = h5py.ExternalLink("/etc/passwd", "/")


def swell(group, name):
    shape = group[name].shape
    del group[name]
    group.create_dataset(name, shape=(1 << 20, *shape[1:]), dtype="f4", chunks=(1, *shape[1:]), fillvalue=1.0)


def reshape(group, name):
    del group[name]
    group[name] = np.zeros([2, 2], np.float32)


@pytest.mark.parametrize(
    "change, expected",
    [(link_outside, "is missing in it, or a link"), (swell, "larger than the file"), (reshape, "holds [2, 2]")],
)
def test_arrays_that_were_tampered_with_are_refused(folder, tmp_path, change, expected):
    path = rewritten(folder, tmp_path, change)
    with pytest.raises(ModelError) as error:
        load_model(path)
    assert expected in str(error.value)


def test_weights_of_another_model_are_refused_and_nothing_is_loaded(folder):
    model = small_network()
    before = model.get_weights()
    with pytest.raises(ModelError, match="do not fit small"):
        load_weights(model, folder / "keras2_branched.h5")
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_we_save_is_read_by_both_keras(tmp_path):
    model = keras_files.branched(keras)
    randomise(model)
    save_model(model, tmp_path / "model.h5")
    np.save(tmp_path / "images.npy", keras_files.images())
    expected = model.predict(keras_files.images(), verbose=0)
    (tmp_path / "read.py").write_text(KERAS_3_READS)
    run_keras_3(tmp_path / "read.py", tmp_path / "model.h5", tmp_path / "outputs.npy", tmp_path / "images.npy")
    assert np.abs(np.load(tmp_path / "outputs.npy") - expected).max() < 1e-5
    plain = keras.models.load_model(tmp_path / "model.h5", compile=False)
    for loaded in (plain, load_model(tmp_path / "model.h5")):
        assert np.abs(loaded.predict(keras_files.images(), verbose=0) - expected).max() < 1e-6


def test_a_model_with_compactors_comes_back(tmp_path):
    model = small_network()
    trained = insert_compactors(model, trace(model))
    randomise(trained)
    save_model(trained, tmp_path / "trained.h5")
    loaded = load_model(tmp_path / "trained.h5")
    images = keras_files.images()
    np.testing.assert_allclose(loaded.predict(images, verbose=0), trained.predict(images, verbose=0), atol=1e-6)


def test_an_open_input_size_is_set(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    save_model(keras.Model(inputs, keras.layers.Dense(3)(x)), tmp_path / "open.h5")
    assert load_model(tmp_path / "open.h5").input_shape == (None, None, None, 3)
    assert load_model(tmp_path / "open.h5", open_size=32).input_shape == (None, 32, 32, 3)
