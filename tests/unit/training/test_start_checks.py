"""What is checked before a phase starts."""

import logging

from resrep_dist.data.normalization import IMAGENET
from resrep_dist.data.source import Source
from resrep_dist.errors import ConfigError
from resrep_dist.graph import trace
from resrep_dist.training.start_checks import check_data, check_images, check_start
from tests.networks import random_source, small_config, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers


def test_images_that_the_model_does_not_take_are_refused():
    source = random_source(4)
    check_images(small_network(), source)
    check_images(keras.Sequential([keras.Input([None, None, 3]), layers.Conv2D(4, 3)]), source)
    grey = keras.Sequential([keras.Input([16, 16, 1]), layers.Conv2D(4, 3)], name="grey")
    with pytest.raises(ConfigError, match=r"grey takes images .* \(16, 16, 1\), but .* are \(16, 16, 3\)"):
        check_images(grey, source)


def test_signals_are_not_images():
    signals = Source(np.zeros([4, 16, 16], np.float32), np.arange(4), 10)
    of_signals = keras.Sequential([keras.Input([None, 16]), layers.Conv1D(4, 3)], name="wave")
    check_images(of_signals, signals)
    for model, source in ((small_network(), signals), (of_signals, random_source(4))):
        with pytest.raises(ConfigError, match=rf"{model.name} takes images .*, but those of data.source are \("):
            check_images(model, source)


@pytest.mark.parametrize(
    "options, expected",
    [
        (
            {"augmentation": "shift"},
            r"data.augmentation: received 'shift', .* shape \(16, 3\); set .*augmentation: none",
        ),
        ({"augmentation": "pad_crop_flip"}, "set data.augmentation: none"),
        ({"mixup_alpha": 0.2}, "data.mixup_alpha: received 0.2, .*; set data.mixup_alpha: 0"),
        ({"cutmix_alpha": 1.0}, "set data.cutmix_alpha: 0"),
        ({"rand_augment": {}}, "set data.rand_augment: null"),
    ],
)
def test_only_images_are_augmented(options, expected):
    signals = Source(np.zeros([64, 16, 3], np.float32), np.arange(64) % 10, 10, scale=IMAGENET)
    x = keras.layers.ReLU()(layers.Conv1D(8, 3, name="conv0")(inputs := keras.Input([16, 3])))
    x = keras.layers.ReLU()(layers.Conv1D(8, 3, name="conv1")(x))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))
    plain = {"source": "arrays", "augmentation": "none"}
    check_start(small_config(data=plain), model, trace(model), signals, signals, 1)
    with pytest.raises(ConfigError, match=expected):
        check_start(small_config(data=plain | options), model, trace(model), signals, signals, 1)


@pytest.mark.parametrize(
    "gpus, num_ranks, num_parts, expected",
    [(["GPU"], 1, 1, ""), (["GPU"], 1, 2, "32 on 1 ranks is 16 image(s)"), (["GPU"], 2, 1, "32 on 2 ranks is 16"),
     ([], 2, 1, "")],
)  # fmt: skip
def test_parts_too_small_for_a_gpu_are_warned_of(monkeypatch, caplog, gpus, num_ranks, num_parts, expected):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    config = small_config(training={"gradient_accumulation_steps": num_parts})
    check_data(config, random_source(64), num_ranks)
    assert expected in caplog.text and bool(expected) == bool(caplog.text)


@pytest.mark.parametrize(
    "gpus, round_to, expected",
    [(["GPU"], 1, "are faster with multiples of 8 channels"), (["GPU"], 4, "are faster with multiples of 8 channels"),
     (["GPU"], 8, ""), ([], 1, "are faster on most CPUs with multiples of 4"), ([], 4, "")],
)  # fmt: skip
def test_widths_that_are_slow_are_said_to_be(monkeypatch, caplog, gpus, round_to, expected):
    caplog.set_level(logging.INFO, "resrep_dist")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    config, model = small_config(prune={"round_to": round_to, "target_macs_fraction": 0.9}), small_network()
    check_start(config, model, trace(model), random_source(64), random_source(64), 1)
    assert expected in caplog.text and bool(expected) == ("prune.round_to is" in caplog.text)
