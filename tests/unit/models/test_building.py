"""Models by name."""

import json
import sys

from resrep_dist.config import ModelConfig
from resrep_dist.config.model_names import BUILT_IN
from resrep_dist.errors import ConfigError, ModelError
from resrep_dist.graph import trace
from resrep_dist.models import building
from resrep_dist.models.building import build_model
from resrep_dist.models.files import load_weights, save_model
from resrep_dist.models.mobilenet import mobilenet_v1
from tests.networks import small_config, small_network

import numpy as np
import pytest
from tensorflow import keras


def multiply_adds(model):
    graph = trace(model)
    return graph.macs.total(graph.widths)


def test_mobilenet_has_the_authors_multiply_adds(golden):
    records = json.loads((golden / "macs.json").read_text())
    expected = max(record["macs"] for record in records if record["model"] == "mobilenet_v1")
    model = build_model(ModelConfig("mobilenet_v1", 1000, 224))
    assert multiply_adds(model) == pytest.approx(expected, rel=1e-7)
    convolutions = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    assert sum(isinstance(layer, convolutions) for layer in model.layers) == 27


def test_a_thin_mobilenet_has_a_share_of_every_width():
    assert trace(mobilenet_v1(32, 10, width_multiplier=0.25)).widths == [
        width // 4 for width in trace(mobilenet_v1(32, 10)).widths
    ]


def test_vgg_is_13_convolutions_and_one_dense_layer():
    model = build_model(ModelConfig("vgg16_cifar", 10, 32))
    widths = [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    assert [layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)] == widths
    assert [layer.name for layer in trace(model).layers] == [
        layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)
    ]
    sizes = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
    channels = [3, *widths[:-1]]
    convolutions = sum(9 * size**2 * a * b for size, a, b in zip(sizes, channels, widths, strict=True))
    assert multiply_adds(model) == convolutions + 512 * 10
    assert model.get_layer("logits").kernel.shape == (512, 10)


def test_a_strided_depthwise_convolution_is_padded_alike_on_all_sides():
    model = build_model(ModelConfig("mobilenet_v1", 2, 32))
    pad = model.get_layer("block2_depthwise_pad")
    assert pad.padding == ((1, 1), (1, 1)) and model.get_layer("block2_depthwise").padding == "valid"


@pytest.mark.parametrize("name", ["MobileNet", "ResNet50", "VGG16"])
def test_models_of_keras_applications_give_logits(name):
    model = build_model(ModelConfig(f"keras:{name}", 7, 64))
    assert model.output_shape == (None, 7)
    assert not np.allclose(model.predict(np.ones([1, 64, 64, 3]), verbose=0).sum(), 1.0)


def test_weights_of_keras_applications_on_disk_are_loaded(tmp_path):
    theirs = keras.applications.MobileNet(weights=None, classes=7, input_shape=(64, 64, 3), classifier_activation=None)
    theirs.save_weights(tmp_path / "weights.h5")
    ours = build_model(ModelConfig("keras:MobileNet", 7, 64))
    load_weights(ours, tmp_path / "weights.h5")
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3))
    np.testing.assert_array_equal(ours.predict(images, verbose=0), theirs.predict(images, verbose=0))


def test_a_model_file_is_a_model_with_its_weights_and_without_its_softmax(tmp_path):
    model = small_network()
    ends = {
        "logits": model.output,
        "layer": keras.layers.Softmax()(model.output),
        "activation": keras.layers.Activation("softmax")(model.output),
        "built_in": keras.layers.Dense(10, activation="softmax", name="softmax")(model.get_layer("pool").output),
    }
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    for name, output in ends.items():
        saved = keras.Model(model.input, output)
        save_model(saved, tmp_path / f"{name}.h5")
        logits = build_model(ModelConfig(f"file:{tmp_path}/{name}.h5", 10, 16)).predict(images, verbose=0)
        expected = saved.predict(images, verbose=0)
        if name != "logits":
            logits = keras.activations.softmax(keras.backend.constant(logits)).numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_a_model_file_needs_neither_base_nor_weights(tmp_path):
    model = {"name": f"file:{tmp_path}/model.h5", "num_classes": 10, "image_size": 16}
    assert small_config(model=model, base=None).base is None
    with pytest.raises(ConfigError, match="neither is given"):
        small_config(model={"name": "python:mine:build"}, base=None)
    with pytest.raises(ConfigError, match="is a file with its weights"):
        small_config(model=model)


MODULE = """
import tensorflow as tf

def good(image_size, num_classes):
    x = inputs = tf.keras.Input([image_size, image_size, 3])
    x = tf.keras.layers.GlobalAveragePooling2D()(tf.keras.layers.Conv2D(4, 3)(x))
    return tf.keras.Model(inputs, tf.keras.layers.Dense(num_classes)(x))

def wrong_size(image_size, num_classes):
    return good(2 * image_size, num_classes)

def wrong_classes(image_size, num_classes):
    return good(image_size, 3)

def nothing(image_size, num_classes):
    pass

class Subclassed(tf.keras.Model):
    def __init__(self, image_size, num_classes):
        super().__init__()

text = "no function"
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    (tmp_path / "users_module.py").write_text(MODULE)
    (tmp_path / "users_broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("users_module", "users_broken_module"):
        sys.modules.pop(name, None)


def test_a_users_own_function_is_called(users_module):
    assert build_model(ModelConfig("python:users_module:good", 7, 24)).output_shape == (None, 7)


@pytest.mark.parametrize(
    "name, error, expected",
    [
        ("python:users_module:wrong_size", ModelError, "expected one input [None, 32, 32, channels]"),
        ("python:users_module:wrong_classes", ModelError, "model.num_classes is 7"),
        ("python:users_module:nothing", ModelError, "returned a builtins.NoneType"),
        ("python:users_module:Subclassed", ModelError, "expected a functional or Sequential model"),
        ("python:users_module:text", ConfigError, "has no function 'text'"),
        ("python:users_module:absent", ConfigError, "has no function 'absent'"),
        ("python:users_absent_module:build", ConfigError, "put its folder on PYTHONPATH"),
        ("python:users_broken_module:build", ConfigError, "ZeroDivisionError: division by zero"),
        ("python:users_module", ConfigError, "expected python:<module>:<function>"),
        ("keras:ResNet51", ConfigError, "did you mean `ResNet50`?"),
        ("keras:InceptionV3", ConfigError, "expected a larger image_size"),
        ("file:nothing.h5", ModelError, "model nothing.h5"),
        ("torch:resnet", ConfigError, "expected a name, keras:<Name>, file:<path>"),
        ("resnet21", ConfigError, "did you mean `resnet20`? expected one of resnet20, resnet32"),
        ("lenet", ConfigError, "vgg16_cifar, keras:<Name> for a model of keras.applications, file:<path>"),
        ("ResNet50", ConfigError, "did you mean `resnet50`?"),
        ("mine.keras", ConfigError, "did you mean `file:mine.keras`?"),
        ("vgg16_cifa", ConfigError, "did you mean `vgg16_cifar`?"),
    ],
)
def test_what_is_no_model_is_said_in_one_line(users_module, name, error, expected):
    with pytest.raises(error) as caught:
        build_model(ModelConfig(name, 7, 32))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_the_names_that_are_checked_without_tensorflow_are_those_of_the_builders():
    assert set(BUILT_IN) == set(building._BUILDERS)


def test_a_model_too_deep_for_its_images_is_refused():
    with pytest.raises(ConfigError, match="model.image_size: vgg16_cifar cannot be built for 16 pixels"):
        build_model(ModelConfig("vgg16_cifar", 10, 16))


def test_a_function_with_unnamed_layers_gives_the_same_names_every_time(tmp_path, monkeypatch):
    (tmp_path / "unnamed_layers.py").write_text(
        "from tensorflow import keras\n"
        "def build(image_size, num_classes):\n"
        "    layers = [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]\n"
        "    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(num_classes)]\n"
        "    x = inputs = keras.Input([image_size, image_size, 3])\n"
        "    for layer in layers:\n"
        "        x = layer(x)\n"
        "    return keras.Model(inputs, x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = ModelConfig("python:unnamed_layers:build", 10, 16)
    names = [[layer.name for layer in build_model(config).layers] for _ in range(3)]
    assert names[0] == names[1] == names[2] and "batch_normalization" in names[0]


KEPT_LAYERS = """
from tensorflow import keras

kept = keras.layers.BatchNormalization()
teacher = keras.Sequential([keras.Input([8, 8, 3]), keras.layers.Conv2D(2, 3), keras.layers.Dense(3)])
lazy = []

def build(image_size, num_classes):
    x = inputs = keras.Input([image_size, image_size, 3])
    x = kept(keras.layers.Conv2D(4, 3)(x))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(6, 3)(x))
    if not lazy:
        lazy.append(keras.layers.Conv2D(5, 3))
    x = keras.layers.GlobalAveragePooling2D()(lazy[0](0.5 * x))
    return keras.Model(inputs, keras.layers.Dense(num_classes)(x))
"""


def test_layers_that_a_module_keeps_do_not_change_the_names(tmp_path, monkeypatch):
    (tmp_path / "kept_layers.py").write_text(KEPT_LAYERS)
    monkeypatch.syspath_prepend(tmp_path)
    config = ModelConfig("python:kept_layers:build", 10, 16)
    models = [build_model(config) for _ in range(3)]
    names = [[layer.name for layer in model.layers] for model in models]
    assert names[0] == names[1] == names[2]
    assert {"batch_normalization", "batch_normalization_1", "conv2d", "conv2d_1", "dense", "input_1"} <= set(names[0])
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    assert np.isfinite(models[2].predict(images, verbose=0)).all()


@pytest.mark.parametrize("name", ["MobileNetV3Small", "InceptionV3", "RegNetX002", "EfficientNetV2B0"])
def test_numbered_models_of_keras_applications_have_one_set_of_names(name):
    names = []
    for _ in range(2):
        model = build_model(ModelConfig(f"keras:{name}", 7, 96))
        names.append([*(layer.name for layer in model.layers), *(weight.name for weight in model.weights)])
        keras.layers.Conv2D(3, 3)
        trace(model)
    assert names[0] == names[1]


def test_a_function_that_counts_its_calls_gives_the_names_of_its_first_model(tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(
        "from tensorflow import keras\n"
        "count = 0\n"
        "def build(image_size, num_classes):\n"
        "    global count\n"
        "    count += 2\n"
        "    x = inputs = keras.Input([image_size, image_size, 3])\n"
        "    for number in (count, count + 1):\n"
        "        x = keras.layers.Conv2D(4, 3, name=f'conv{number}')(x)\n"
        "        x = keras.layers.ReLU(name=f'relu{number}')(x)\n"
        "    x = keras.layers.Dense(num_classes)(keras.layers.Flatten()(x))\n"
        "    return keras.Model(inputs, x, name=f'model{count}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = [[layer.name for layer in build_model(ModelConfig("python:counting:build", 10, 8)).layers] for _ in "123"]
    assert names[0] == names[1] == names[2] and {"conv2", "relu3"} <= set(names[0])
    other = build_model(ModelConfig("python:counting:build", 10, 12))
    assert {"conv8", "conv9"} <= {layer.name for layer in other.layers}, "another model has its own names"
