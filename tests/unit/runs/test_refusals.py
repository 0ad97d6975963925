"""What can be known at the start is refused at the start, and every advice works when it is followed."""

import logging

from resrep_dist.data.imagefolder import ImageFolder
from resrep_dist.data.source import Source
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError, DataError, ModelError
from resrep_dist.graph import trace
from resrep_dist.merging import merge
from resrep_dist.models.files import load_model, save_model
from resrep_dist.runs.train import train
from resrep_dist.training.trainer import Trainer
from tests.images import write_image_folders
from tests.networks import random_source, small_config, sources_of

import numpy as np
import pytest
from tensorflow import keras

layers = keras.layers


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"prune": {"mask_start_epochs": 5.9, "mask_stop_fraction": None, "lasso_strength": 1e-6}},
            "prune.mask_start_epochs: received 5.9",
        ),
        ({"training": {"loss": "no_loss"}}, "training.loss: received 'no_loss'"),
        ({"training": {"class_weights": (1.0, 2.0)}}, "training.class_weights: received 2 numbers"),
        ({"training": {"metrics": ("Precison",)}}, "did you mean `Precision`"),
        ({"data": {"global_batch_size": 20_000}}, "prune.mask_start_epochs: received 1"),
    ],
)
def test_settings_are_refused_before_a_base_model_is_trained(tmp_path, changes, expected):
    with pytest.raises(ConfigError, match=expected):
        train(small_config(**changes), tmp_path / "run", Cluster(), None)
    assert not (tmp_path / "run" / "base").exists()


def recurrent():
    inputs = keras.Input([16, 16, 3])
    x = layers.ReLU()(layers.Conv2D(8, 3, 2, name="conv")(inputs))
    x = layers.ReLU()(layers.Conv2D(6, 3, 2, name="last")(x))
    return keras.Model(inputs, layers.Dense(10)(layers.LSTM(5)(layers.Reshape([9, 6])(x))))


def test_a_layer_that_no_file_holds_is_pruned_by_the_way_that_the_refusal_names(tmp_path):
    save_model(recurrent(), tmp_path / "model.h5")
    with pytest.raises(ModelError, match=r"is a LSTM, .*train it from a program by resrep_dist.Trainer"):
        load_model(tmp_path / "model.h5")
    model = recurrent()
    graph = trace(model)
    assert [group.name for group in graph.groups] == ["conv"]
    trainer = Trainer(model, graph, small_config(data={"source": "arrays"}), random_source(), random_source(64))
    trainer.start()
    trainer.train_until(3)
    _, certificate = merge(trainer.model, graph, random_source(64).images)
    assert certificate.max_relative_difference < 1e-4


def test_random_augmentation_layers_are_held_by_files(tmp_path):
    inputs = keras.Input([16, 16, 3])
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
    x = layers.RandomZoom(0.1)(layers.RandomTranslation(0.1, 0.1)(layers.RandomContrast(0.1)(x)))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Conv2D(8, 3, name="conv")(x)))
    model = keras.Model(inputs, layers.Dense(10)(x))
    save_model(model, tmp_path / "model.h5")
    again, images = load_model(tmp_path / "model.h5"), random_source(8).images
    np.testing.assert_array_equal(again(images, training=False), model(images, training=False))
    assert [group.name for group in trace(again).groups] == ["conv"]


def test_files_of_other_formats_are_counted_and_jpeg_by_any_name_is_read(tmp_path, caplog):
    folder = write_image_folders(tmp_path, 9, 6) / "train"
    files = sorted(folder.glob("*/*.JPEG"))
    for path, ending in zip(files, (".jfif", ".JPE", ".webp", ".webp", ".tiff"), strict=False):
        path.rename(path.with_suffix(ending))
    (files[0].parent / ".hidden.webp").touch()
    with caplog.at_level(logging.WARNING):
        source = ImageFolder(folder, 16, 0.875)
    assert len(source) == 9 - 3
    assert "3 files are left out (2 .webp, 1 .tiff)" in caplog.text and "convert other images" in caplog.text
    assert source.first_images(6).shape == (6, 16, 16, 3), "what is counted as an image can be decoded"


@pytest.mark.parametrize("name", ["x_train", "x_test"])
def test_an_empty_split_is_said_in_words(tmp_path, name):
    images, labels = np.zeros([4, 16, 16, 3], np.uint8), np.zeros(4, int)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    arrays[name], arrays[name.replace("x", "y")] = images[:0], labels[:0]
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=f"{name} is empty"):
        sources_of(small_config(data={"source": "npz", "path": str(tmp_path / "set.npz")}))
    with pytest.raises(DataError, match="the set is empty"):
        Source(images[:0], labels[:0], 10)
