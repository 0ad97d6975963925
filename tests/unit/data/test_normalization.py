"""The scale of the pixels: by name, by model family, and what is refused."""

import dataclasses
import logging

from resrep_dist.config import ChannelStatistics, RandAugmentConfig
from resrep_dist.config.normalization import default_normalization
from resrep_dist.data import rand_augment
from resrep_dist.data.augmentation import normalize
from resrep_dist.data.imagefolder import ImageFolder
from resrep_dist.data.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalization
from resrep_dist.data.order import training_batches
from resrep_dist.errors import ConfigError, DataError
from resrep_dist.models.input_scale import scaling_layer
from resrep_dist.reporting.usage import usage_of
from resrep_dist.runs.preparation import _warn_if_scaled_twice
from resrep_dist.runs.workdir import config_of_run, open_workdir
from tests.images import write_image_folders
from tests.networks import small_config, sources_of

import numpy as np
import pytest
from tensorflow import keras

MODES = {"imagenet": "torch", "minus_one_one": "tf", "caffe": "caffe"}


def config_with(normalization=None, model="resnet20", **data):
    data = {"source": "imagefolder", "path": "photos", **data}
    if normalization is not None:
        data["normalization"] = normalization
    # A file has its weights, which no base training may change.
    sections = {"base": None} if model.startswith("file:") else {}
    return small_config(data=data, model={"name": model, "image_size": 16, "num_classes": 10}, **sections)


@pytest.mark.parametrize("name", ["imagenet", "zero_one", "minus_one_one", "caffe", "none"])
def test_each_name_is_what_keras_calls_it(tmp_path, name):
    folder = write_image_folders(tmp_path, 9, 6)
    pixels, images = (sources_of(config_with(scale, path=str(folder)))[1].first_images(6) for scale in ("none", name))
    assert 2 < pixels.max() <= 255
    if name in MODES:
        expected = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode=MODES[name])
    else:
        expected = pixels / 255.0 if name == "zero_one" else pixels
    np.testing.assert_allclose(images, expected, atol=1e-4)


def test_own_mean_and_deviation(tmp_path):
    folder = write_image_folders(tmp_path, 9, 6)
    config = config_with({"mean": [10.0, 20.0, 30.0], "std": [2.0, 4.0, 5.0]}, path=str(folder))
    assert config.data.normalization == ChannelStatistics((10.0, 20.0, 30.0), (2.0, 4.0, 5.0))
    pixels = sources_of(config_with("none", path=str(folder)))[0].first_images(4)
    expected = (pixels - [10, 20, 30]) / [2, 4, 5]
    np.testing.assert_allclose(sources_of(config)[0].first_images(4), expected, atol=1e-4)


@pytest.fixture(params=["npz", "cifar10"])
def in_memory(request, tmp_path):
    """Five images of noise, and a function of a scale that returns the configuration of a source that holds them."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    path = tmp_path / "set.npz"
    if request.param == "npz":
        labels = np.arange(5)
        np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    else:
        path = tmp_path / "binary"
        path.mkdir()
        table = np.concatenate([np.zeros((5, 1), np.uint8), pixels.transpose(0, 3, 1, 2).reshape(5, -1)], 1)
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            (path / name).write_bytes(table.tobytes())

    def config_of(normalization):
        data = {"source": request.param, "path": str(path), "normalization": normalization}
        return small_config(data=data, model={"name": "resnet20", "image_size": 32})

    return pixels, config_of


def test_pixels_in_memory_have_the_same_scales(in_memory):
    pixels, config_of = in_memory
    for name, mode in MODES.items():
        expected = keras.applications.imagenet_utils.preprocess_input(pixels.astype(np.float32), mode=mode)
        np.testing.assert_allclose(sources_of(config_of(name))[1].first_images(5), expected, atol=1e-4)


@pytest.mark.parametrize("name", [*MODES, "zero_one", "none", "data_set"])
def test_the_scale_that_pixels_in_memory_say_is_the_one_that_they_have(in_memory, name):
    pixels, config_of = in_memory
    for source in sources_of(config_of(name)):
        images = source.first_images(5)
        np.testing.assert_allclose(source.pixel_scale()(pixels), images, atol=1e-4)
        np.testing.assert_allclose(source.pixel_scale().pixels_of(images), pixels, atol=1e-3)
        described = usage_of(config_of(name), source)["pixels"]
        assert described["channel_order"] == ("BGR" if name == "caffe" else "RGB") and described["range"] == [0, 255]
        np.testing.assert_allclose(described["mean"], source.mean)


def test_augmentation_by_color_sees_the_colors_of_pixels_in_memory(in_memory, monkeypatch):
    # The one operation that weighs red, green and blue differently and rounds nothing.
    monkeypatch.setattr(rand_augment, "OPERATIONS", {"color": rand_augment.OPERATIONS["color"]})
    batches = {}
    for name in ("none", "caffe"):
        config = in_memory[1](name)
        data = dataclasses.replace(config.data, rand_augment=RandAugmentConfig(magnitude=20))
        place = {"seed": 0, "rank": 0, "num_ranks": 1, "first_step": 0}
        order = training_batches(sources_of(config)[0], global_batch_size=8, augmentation="none", config=data, **place)
        batches[name], _ = next(iter(order))
    expected = keras.applications.imagenet_utils.preprocess_input(batches["none"].numpy(), mode="caffe")
    np.testing.assert_allclose(batches["caffe"], expected, atol=1e-3)


@pytest.mark.parametrize(
    "model, expected",
    [
        ("EfficientNetB0", "none"), ("EfficientNetV2S", "none"), ("MobileNetV3Small", "none"),
        ("ConvNeXtTiny", "none"), ("RegNetX002", "none"), ("ResNetRS50", "none"),
        ("MobileNet", "minus_one_one"), ("MobileNetV2", "minus_one_one"), ("ResNet50V2", "minus_one_one"),
        ("Xception", "minus_one_one"), ("InceptionV3", "minus_one_one"), ("NASNetMobile", "minus_one_one"),
        ("ResNet50", "caffe"), ("VGG16", "caffe"), ("DenseNet121", "imagenet"),
    ],
)  # fmt: skip
def test_models_of_keras_applications_get_what_they_were_trained_on(model, expected):
    config = config_with(model=f"keras:{model}")
    assert config.data.normalization == expected
    assert default_normalization("npz", f"keras:{model}") == "data_set"
    if expected in MODES:
        module = next(
            module
            for module in map(keras.applications.__dict__.get, dir(keras.applications))
            if hasattr(module, model) and hasattr(module, "preprocess_input")
        )
        pixels = np.random.default_rng(0).uniform(0, 255, (2, 4, 4, 3)).astype(np.float32)
        ours = keras.applications.imagenet_utils.preprocess_input(pixels.copy(), mode=MODES[expected])
        np.testing.assert_array_equal(module.preprocess_input(pixels.copy()), ours)


def test_other_models_keep_the_scale_that_they_had():
    assert config_with().data.normalization == "imagenet"
    assert config_with(model="file:mine.h5").data.normalization == "imagenet"
    assert small_config(data={"source": "cifar10", "path": "x"}).data.normalization == "data_set"


@pytest.mark.parametrize(
    "data, expected",
    [
        ({"normalization": "zero_to_one"}, "data.normalization: received 'zero_to_one', expected 'default'"),
        ({"normalization": 3}, "data.normalization: received 3, expected"),
        ({"normalization": {"mean": [1.0, 2.0, 3.0]}}, "data.normalization.std: missing"),
        ({"normalization": {"mean": [1.0], "std": [1.0]}}, "data.normalization.mean: received 1 numbers, expected 3"),
        ({"normalization": {"mean": [1.0] * 3, "std": [1.0, 0.0, 1.0]}}, "data.normalization.std.1: received 0.0"),
        ({"normalization": {"mean": [1.0] * 3, "sdt": [1.0] * 3}}, "did you mean `std`"),
        ({"normalization": "data_set"}, "imagefolder does not know the mean of its images"),
        ({"normalization": "caffe", "source": "digits", "path": None}, "data.source digits are not pixels"),
        ({"normalization": "none", "source": "arrays", "path": None}, "used as they are; remove it"),
    ],
)
def test_scales_that_are_refused(data, expected):
    with pytest.raises(ConfigError) as caught:
        config_with(**data)
    assert expected in str(caught.value) and "literal[" not in str(caught.value)


@pytest.mark.parametrize(
    "train, test, expected",
    [
        (np.float32([0.0, 1.0]), np.uint8([0, 255]), "x_train holds float32 up to 1, x_test uint8 up to 255"),
        (np.uint8([0, 255]), np.float64([0.0, 255.0]), "expected the same type and scale in both"),
        (np.float32([0.0, 1.0]), np.float32([0.0, 255.0]), "x_test float32 up to 255"),
        (np.uint8([0, 1]), np.uint8([0, 255]), "x_train holds uint8 up to 1"),
    ],
)
def test_arrays_of_two_scales_are_refused(tmp_path, train, test, expected):
    images = [np.resize(values, (4, 16, 16, 3)) for values in (train, test)]
    labels = np.arange(4)
    np.savez(tmp_path / "set.npz", x_train=images[0], y_train=labels, x_test=images[1], y_test=labels)
    with pytest.raises(DataError, match=expected):
        sources_of(small_config(data={"source": "npz", "path": str(tmp_path / "set.npz")}))


def test_floating_point_images_cannot_be_scaled_as_pixels(tmp_path):
    images, labels = np.random.default_rng(0).normal(size=(4, 16, 16, 3)), np.arange(4)
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = {"source": "npz", "path": str(tmp_path / "set.npz")}
    with pytest.raises(DataError, match="x_train holds floating-point images"):
        sources_of(small_config(data={**data, "normalization": "imagenet"}))
    train, _ = sources_of(small_config(data={**data, "normalization": "none"}))
    np.testing.assert_array_equal(train.first_images(4), images.astype(np.float32))


def model_that_begins_with(*layers):
    x = inputs = keras.Input([16, 16, 3])
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Conv2D(4, 3)(x))))


def test_a_model_that_scales_its_input_is_found():
    layers = keras.layers
    assert scaling_layer(model_that_begins_with(layers.Rescaling(1 / 255, name="scale"))) == "scale"
    padded = model_that_begins_with(layers.ZeroPadding2D(1), layers.Normalization(mean=1.0, variance=2.0, name="own"))
    assert scaling_layer(padded) == "own"
    assert scaling_layer(model_that_begins_with(lambda x: x / 127.5 - 1.0)) is not None
    assert scaling_layer(model_that_begins_with()) is None
    behind = model_that_begins_with(layers.Conv2D(4, 3), layers.Rescaling(0.5))
    assert scaling_layer(behind) is None


def test_scaling_twice_is_said(tmp_path, caplog):
    model = model_that_begins_with(keras.layers.Rescaling(1 / 255, name="scale"))
    folder = str(write_image_folders(tmp_path, 9, 6))
    for scale in ("imagenet", "none"):
        config = config_with(scale, path=folder)
        with caplog.at_level(logging.WARNING):
            _warn_if_scaled_twice(model, config, sources_of(config)[0])
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["The model begins with scale"]


def test_a_run_of_an_older_version_keeps_its_scale(tmp_path):
    config = config_with(model="keras:MobileNet")
    text = config.to_yaml()
    assert text.count("normalization: minus_one_one") == 1
    (tmp_path / "config.yaml").write_text(text.replace("  normalization: minus_one_one\n", ""))
    (tmp_path / "checkpoints").mkdir()
    assert config_of_run(tmp_path).data.normalization == "imagenet"
    with pytest.raises(ConfigError, match="data.normalization is imagenet there and minus_one_one here"):
        open_workdir(config, tmp_path)
    open_workdir(config_with("imagenet", model="keras:MobileNet"), tmp_path)


def test_images_are_padded_with_black_before_they_are_scaled(tmp_path):
    folder = write_image_folders(tmp_path, 9, 6)
    scale = Normalization((10.0, 20.0, 30.0), (2.0, 4.0, 5.0), is_bgr=True)
    source = ImageFolder(folder / "train", 16, 0.875, None, scale)
    assert source.first_images(1).shape == (1, 16, 16, 3)
    np.testing.assert_allclose(scale(np.zeros((1, 1, 1, 3), np.uint8)).numpy().ravel(), [-5.0, -5.0, -6.0], atol=1e-6)
    assert np.allclose(normalize(np.zeros((1, 1, 1, 3)), IMAGENET_MEAN, IMAGENET_STD)[0, 0, 0, 0], -0.485 / 0.229)
