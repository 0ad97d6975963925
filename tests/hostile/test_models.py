"""Model files from strangers: nothing in them runs, each is refused in one line, without much memory or time."""

import itertools
import json
import os
import resource
import time
import zipfile

from resrep_dist.errors import ModelError
from resrep_dist.models.building import build_model
from resrep_dist.models.files import load_model, load_weights
from tests import keras_files
from tests.networks import small_config

import h5py
import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

IMAGES = (16, 16, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A good model in both formats, and models with code in them; whoever runs it leaves a file `ran`."""
    folder = tmp_path_factory.mktemp("models")
    model = keras_files.sequential(keras)
    model.save(folder / "good.keras")
    model.save(folder / "good.h5")

    # What a Lambda holds is saved with it.
    ran = str(folder / "ran")

    def planted(x):
        open(ran, "w").close()
        return x

    @keras.saving.register_keras_serializable("stranger")
    class Planted(keras.layers.Layer):
        def __init__(self, **options):
            planted(None)
            super().__init__(**options)

    def penalty(x):
        return 0.0 * tf.reduce_sum(planted(x))

    def initial(shape, dtype=None, **options):
        return planted(tf.ones(shape, dtype))

    for function in (planted, penalty):
        keras.saving.register_keras_serializable("stranger")(function)

    inputs = keras.Input(IMAGES)
    for name, layer in {
        "lambda": keras.layers.Lambda(planted, name="plant"),
        "registered": Planted(name="plant"),
        "activation": keras.layers.Activation(planted, name="plant"),
        "regularizer": keras.layers.Conv2D(4, 1, kernel_regularizer=penalty, name="plant"),
        "initializer": keras.layers.Conv2D(4, 1, kernel_initializer=initial, name="plant"),
    }.items():  # fmt: skip
        model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(layer(inputs))))
        for ending in ("keras", "h5"):
            model.save(folder / f"{name}.{ending}")
    (folder / "ran").unlink()
    return folder


@pytest.fixture(autouse=True)
def unharmed(folder, monkeypatch):
    """Nothing ran, and memory and time stay small."""
    monkeypatch.chdir(folder)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert not (folder / "ran").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000, "KiB"
    assert time.process_time() - start < 60


def refused(load, path):
    with pytest.raises(ModelError) as error:
        load(path)
    text = str(error.value)
    assert text.isprintable() and len(text) < 1000 and path.name in text, text
    return text


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("name", ["lambda", "registered", "activation", "regularizer", "initializer"])
def test_code_that_keras_2_saved_is_refused_by_the_layers_name(folder, name, ending):
    assert "layer plant" in refused(load_model, folder / f"{name}.{ending}")


def test_the_good_ones_are_loaded(folder):
    for ending in ("keras", "h5"):
        load_weights(load_model(folder / f"good.{ending}"), folder / f"good.{ending}")


def layers(document):
    return {entry["config"]["name"]: entry for entry in document["config"]["layers"]}


def first(document, class_name):
    return next(entry for entry in document["config"]["layers"] if entry["class_name"] == class_name)


def in_layer(class_name, /, **changes):
    return lambda document: first(document, class_name).update(changes)


def in_options(class_name, /, **changes):
    return lambda document: first(document, class_name)["config"].update(changes)


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def chain(document, length):
    """So many activations in a row, the last one first."""
    entry = json.dumps(first(document, "Activation"))
    rest = [json.loads(entry) for _ in range(length)]
    for number, activation in enumerate(rest):
        activation["config"]["name"] = f"relu{number}"
    document["config"]["layers"][2:2] = rest


SYSTEM = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
OS = {"module": "os", "class_name": "mkdir", "config": {"path": "ran"}, "registered_name": "mkdir"}
DOCUMENTS = {
    "module_os": (in_layer("Conv2D", module="os", class_name="system"), "is a system, which is not loaded"),
    "module_os_of_stock": (in_layer("Conv2D", module="os"), "is a Conv2D, which is not loaded"),
    "registered": (in_layer("Conv2D", registered_name="builtins>exec"), "is a Conv2D, which is not loaded"),
    "class_list": (in_layer("Conv2D", class_name=["Conv2D"]), "not a Keras file"),
    "activation_os": (in_options("Activation", activation=SYSTEM), "its activation system is not known"),
    "activation_dict": (in_options("Activation", activation={"class_name": "function", "config": OS}), "activation"),
    "activation_list": (in_options("Activation", activation=["relu"]), "activation"),
    "initializer_os": (in_options("Conv2D", kernel_initializer=OS), "its initializer mkdir"),
    "initializer_module": (in_options("Conv2D", kernel_initializer={**OS, "class_name": "Zeros"}), "its initializer"),
    "initializer_text": (in_options("Conv2D", kernel_initializer="stranger>planted"), "initializer stranger>"),
    "initializer_get": (in_options("Conv2D", kernel_initializer={**OS, "class_name": "get"}), "initializer get"),
    "regularizer_deep": (in_options("Conv2D", kernel_regularizer={"class_name": "L2", "config": {"l2": OS}}), "plain"),
    "compile_config": (lambda d: d.update(compile_config={"optimizer": OS, "loss": SYSTEM}), ""),
    "build_config": (in_layer("Conv2D", build_config=OS), ""),
    "filters_huge": (in_options("Conv2D", filters=10**12), "layer"),
    "kernel_huge": (in_options("Conv2D", kernel_size=[10**6, 10**6]), "layer"),
    "filters_infinite": (in_options("Conv2D", filters=float("inf")), "layer"),
    "filters_negative": (in_options("Conv2D", filters=-4), "layer"),
    "units_text": (in_options("Dense", units="__import__('os').system('touch ran')"), "layer"),
    "input_huge": (in_options("InputLayer", batch_shape=[None, 10**9, 10**9, 10**9], batch_input_shape=None), ""),
    "input_overflow": (in_options("InputLayer", batch_shape=[None, 10**30, 16, 3], batch_input_shape=None), ""),
    "input_text": (in_options("InputLayer", batch_shape="None", batch_input_shape=None), "expected an input"),
    "name_escape": (in_options("Conv2D", name="\x1b[2J\n" * 500, filters=7), ""),
    "name_dict": (in_options("Conv2D", name={"a": 1}), ""),
    "option_deep": (in_options("Conv2D", strides=deep(500)), ""),
    "option_unknown": (in_options("Conv2D", fn="cos\nmkdir\n(S'ran'\ntR."), "its option fn="),
    "layers_none": (lambda d: d["config"].update(layers=None), "not a Keras file"),
    "layers_numbers": (lambda d: d["config"].update(layers=[1, 2]), "not a Keras file"),
    "layers_empty": (lambda d: d["config"].update(layers=[]), "without an input shape"),
    "config_text": (lambda d: d.update(config="os.system"), "not a Keras file"),
    "subclassed": (lambda d: d.update(class_name="Evil", module="os"), "not a functional or Sequential model"),
    "registered_model": (lambda d: d.update(registered_name="os>Sequential"), "not a functional or Sequential model"),
    "too_many": (lambda d: chain(d, 6000), "expected at most 5000"),
    "long_chain": (lambda d: chain(d, 2000), ""),
}  # fmt: skip


def with_document(folder, tmp_path, change):
    path = tmp_path / "changed.keras"
    with zipfile.ZipFile(folder / "good.keras") as source, zipfile.ZipFile(path, "w") as target:
        document = json.loads(source.read("config.json"))
        change(document)
        target.writestr("config.json", json.dumps(document))
        for name in ("metadata.json", "model.weights.h5"):
            target.writestr(name, source.read(name))
    return path


@pytest.mark.parametrize("harm", DOCUMENTS)
def test_a_tampered_architecture_is_refused(folder, tmp_path, harm):
    change, expected = DOCUMENTS[harm]
    path = with_document(folder, tmp_path, change)
    if harm in ("compile_config", "build_config"):
        # What stands beside the layers is not looked at.
        assert load_model(path).count_params() > 0
    else:
        assert expected in refused(load_model, path)


def test_a_reference_that_is_no_number_is_refused(folder, tmp_path):
    inputs = keras.Input(IMAGES)
    keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs))).save(tmp_path / "functional.h5")
    for harmful in (float("inf"), "x", None, [1], 10**30):
        with h5py.File(tmp_path / "functional.h5", "r+") as file:
            document = json.loads(file.attrs["model_config"])
            document["config"]["output_layers"][0][1] = harmful
            file.attrs["model_config"] = json.dumps(document)
        refused(load_model, tmp_path / "functional.h5")


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)


def bombs(folder, path):
    with zipfile.ZipFile(folder / "good.keras") as source:
        good = {name: source.read(name) for name in source.namelist()}
    yield "unpacks to", lambda: zipped(path, good | {"config.json": b"[" + b"[]," * (6 << 20) + b"0]"})
    yield "unpacks to", lambda: zipped(path, good | {"model.weights.h5": bytes(1 << 27)})
    yield "nested too deeply", lambda: zipped(path, good | {"config.json": b'{"a":' * 100_000})
    yield "nested too deeply", lambda: zipped(path, good | {"metadata.json": b"[" * 100_000})
    yield "Keras file", lambda: zipped(path, good | {"config.json": b'{"class_name": "Seq'})
    yield "Keras file", lambda: zipped(path, good | {"config.json": b"\xff\xfe{}"})
    yield "not a JSON object", lambda: zipped(path, good | {"config.json": b"[]"})
    yield "Exceeds the limit", lambda: zipped(path, good | {"config.json": b'{"a": ' + b"9" * 5000 + b"}"})
    yield "Keras file", lambda: zipped(path, good | {"model.weights.h5": b"\x80\x04cos\nmkdir\n(S'ran'\ntR."})
    names = {"../../config.json": "{}", "/config.json": "{}", "../../../ran": ""}
    yield "Keras file", lambda: zipped(path, names)

    def lie():
        zipped(path, good, zipfile.ZIP_STORED)
        data = bytearray(path.read_bytes())
        entry = data.rindex(b"PK\x01\x02")
        data[entry + 20 : entry + 28] = b"\xf0\xff\xff\x7f" * 2
        path.write_bytes(data)

    yield "", lie


def test_tampered_zips_and_bombs_are_refused(folder, tmp_path):
    path = tmp_path / "bomb.keras"
    for expected, write in bombs(folder, path):
        write()
        assert expected in refused(load_model, path)
    assert not [file for file in tmp_path.parent.iterdir() if file.name in ("ran", "config.json")]


def find(group):
    """The group of the first layer with weights in a Keras 2 file."""
    return next(group[name] for name in group if len(group[name].attrs["weight_names"]))


def kernel(file):
    layer = find(file["model_weights"])
    name = layer.attrs["weight_names"][0]
    return layer, name.decode() if isinstance(name, bytes) else name


def link_to(make_link):
    def change(file):
        layer, name = kernel(file)
        del layer[name]
        layer[name] = make_link()

    return change


def replace_root(make_link):
    def change(file):
        del file["model_weights"]
        file["model_weights"] = make_link()

    return change


def circle(file):
    layer, name = kernel(file)
    del layer[name]
    layer[name] = file["model_weights"]


def stored_elsewhere(file):
    layer, name = kernel(file)
    shape = layer[name].shape
    del layer[name]
    layer.create_dataset(name, shape=shape, dtype="f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file):
    layer, name = kernel(file)
    shape = layer[name].shape
    del layer[name]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("other.h5", "data", shape=shape)
    layer.create_virtual_dataset(name, layout)


def large_chunk(file):
    layer, name = kernel(file)
    shape = layer[name].shape
    del layer[name]
    chunks = (1 << 20, *shape[1:])
    layer.create_dataset(name, shape=shape, maxshape=(None, *shape[1:]), chunks=chunks, dtype="f4", compression="gzip")


def objects(file):
    layer, name = kernel(file)
    shape = layer[name].shape
    del layer[name]
    layer.create_dataset(name, data=np.full(shape, b"cos\nsystem", object), dtype=h5py.special_dtype(vlen=bytes))


def config_array(file):
    file.attrs.create("model_config", [file.attrs["model_config"]] * 3, dtype=h5py.string_dtype())


def config_text(text):
    def change(file):
        file.attrs["model_config"] = text

    return change


FIFO = "pipe"
HDF5 = {
    "external_link": (link_to(lambda: h5py.ExternalLink("/etc/passwd", "/")), "or a link"),
    "link_to_pipe": (link_to(lambda: h5py.ExternalLink(FIFO, "/")), "or a link"),
    "soft_link": (link_to(lambda: h5py.SoftLink("/model_weights")), "or a link"),
    "root_to_pipe": (replace_root(lambda: h5py.ExternalLink(FIFO, "/")), "or a link"),
    "root_soft": (replace_root(lambda: h5py.SoftLink("/model_weights")), "or a link"),
    "circle": (circle, "is not a dataset"),
    "stored_elsewhere": (stored_elsewhere, "points to another file"),
    "virtual": (virtual, "points to another file"),
    "large_chunk": (large_chunk, "larger than the file"),
    "objects": (objects, "expected numbers"),
    "config_array": (config_array, "is not text"),
    "config_broken": (config_text('{"class_name": '), "not a Keras file"),
    "config_deep": (config_text('{"a":' * 10_000), "nested too deeply"),
    "config_pickle": (config_text("cos\nsystem\n(S'touch ran'\ntR."), "not a Keras file"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HDF5)
def test_a_tampered_hdf5_file_is_refused_and_no_other_file_is_opened(folder, tmp_path, monkeypatch, harm):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / FIFO)
    change, expected = HDF5[harm]
    path = tmp_path / "changed.h5"
    path.write_bytes((folder / "good.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    assert expected in refused(load_model, path)
    if not harm.startswith("config"):
        assert expected in refused(lambda path: load_weights(keras_files.sequential(keras), path), path)


def test_keras_3s_layout_follows_no_links_either(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / FIFO)
    model = keras_files.sequential(keras)
    for place in ("layers", "layers/conv2d", "layers/conv2d/vars", "layers/conv2d/vars/0"):
        path = tmp_path / "linked.weights.h5"
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            file[place] = h5py.ExternalLink(FIFO, "/")
        assert "or a link" in refused(lambda path: load_weights(model, path), path)


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "zero.keras").symlink_to("/dev/zero")
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "circle.h5").symlink_to(tmp_path / "circle.h5")
    for path in tmp_path.iterdir():
        for load in (load_model, lambda path: load_weights(keras_files.sequential(keras), path)):
            assert "cannot be loaded" in refused(load, path)


@pytest.fixture(scope="module")
def resnet():
    return build_model(small_config(model={"name": "resnet18", "image_size": 32}).model)


def tensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        (1 << 62).to_bytes(8, "little") + b"{}",
        (99_999_999).to_bytes(8, "little") + b"{}",
        tensors(b"{" * 10_000),
        tensors(b'{"a":' + b"[" * 100_000),
        tensors(b"\xff\xfe\x00"),
        tensors([]),
        tensors({}),
        tensors({"conv1.weight": F32}),
        tensors({"conv1.weight": F32}, bytes(16)),
        tensors({"conv1.weight": {**F32, "shape": [1 << 62, 4]}}, bytes(16)),
        tensors({"conv1.weight": {**F32, "shape": [-4]}}, bytes(16)),
        tensors({"conv1.weight": {**F32, "data_offsets": [0, 1 << 60]}}, bytes(16)),
        tensors({"conv1.weight": {**F32, "data_offsets": [16, 0]}}, bytes(16)),
        tensors({"conv1.weight": {**F32, "dtype": "O"}}, bytes(16)),
        tensors({"conv1.weight": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}}, bytes(16)),
        tensors({"\x1b[2J\n" * 100: F32}, bytes(16)),
        tensors({"../../ran": F32, "__metadata__": {"format": "pickle"}}, bytes(16)),
        b"\x80\x04cos\nmkdir\n(S'ran'\ntR.",
    ],
    ids=itertools.count(),
)
def test_safetensors_with_a_bad_header_are_refused(tmp_path, resnet, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    assert "do not fit" in refused(lambda path: load_weights(resnet, path), path)
