from resrep_dist.checkpoints.variables import batch_norm_statistics
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import trace
from resrep_dist.layers.replacement import with_precision
from resrep_dist.training.phase import model_for_training, plan_phase
from tests.networks import randomise, small_config, small_network

import numpy as np
import pytest
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


def test_no_extension_is_no_step_more():
    for num_epochs, num_steps in ((0, 60), (2, 80)):
        config = small_config(prune={"max_extension_epochs": num_epochs})
        plan = plan_phase(config, trace(small_network()), 320)
        assert (plan.num_steps, plan.max_steps) == (60, num_steps)
