from resrep_dist.checkpoints.variables import batch_norm_statistics
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError
from resrep_dist.graph import trace
from resrep_dist.layers.replacement import with_precision
from resrep_dist.training.phase import check_data, check_images, model_for_training, plan_phase
from tests.networks import random_source, randomise, small_config, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

layers = keras.layers


@pytest.mark.parametrize("training", [{"precision": "mixed_bfloat16"}, {"sync_batch_norm": True}])
def test_a_model_inside_the_model_and_a_built_in_activation_stay_what_they_are(training):
    inner = keras.Sequential([keras.Input([8, 8, 3]), layers.Conv2D(4, 3, activation="swish"),
                              layers.BatchNormalization()])  # fmt: skip
    inputs = keras.Input([8, 8, 3])
    features = layers.GlobalAveragePooling2D()(inner(inputs))
    model = keras.Model(inputs, layers.Dense(10)(features))
    randomise(model)
    trained = model_for_training(model, None, small_config(training=training), Cluster())
    # The step averages them over the ranks, so it has to find them.
    assert len(batch_norm_statistics(trained)) == 2
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(with_precision(trained, "float32")(images), model(images), atol=1e-5)


def test_images_that_the_model_does_not_take_are_refused():
    source = random_source(4)
    check_images(small_network(), source)
    check_images(keras.Sequential([keras.Input([None, None, 3]), layers.Conv2D(4, 3)]), source)
    grey = keras.Sequential([keras.Input([16, 16, 1]), layers.Conv2D(4, 3)], name="grey")
    with pytest.raises(ConfigError, match=r"grey takes images .* \(16, 16, 1\), but .* are \(16, 16, 3\)"):
        check_images(grey, source)


def test_no_extension_is_no_step_more():
    for num_epochs, num_steps in ((0, 60), (2, 80)):
        config = small_config(prune={"max_extension_epochs": num_epochs})
        plan = plan_phase(config, trace(small_network()), 320)
        assert (plan.num_steps, plan.max_steps) == (60, num_steps)


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
