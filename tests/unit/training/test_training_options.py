"""Whole short runs on the digits: what a way to compute may change, and what not."""

import resrep_dist
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.training.evaluation import Evaluator
from tests.networks import small_config, small_network, sources_of

import numpy as np
import pytest
import tensorflow as tf

CLUSTER = Cluster()


def configured(training):
    return small_config(
        data={"global_batch_size": 64},
        base={"num_epochs": 8, "learning_rate": 0.1},
        train={"num_epochs": 12, "learning_rate": 0.02},
        prune={
            "target_macs_fraction": 0.6,
            "channels_per_update": 2,
            "lasso_strength": 0.01,
            "mask_start_epochs": 2,
            "mask_stop_fraction": 0.6,
        },
        training=training,
    )


@pytest.fixture(scope="module")
def base_weights():
    tf.config.experimental.enable_op_determinism()
    model = small_network()
    trainer = resrep_dist.Trainer(model, None, configured({}), *sources_of(configured({})), cluster=CLUSTER)
    trainer.run()
    return model.get_weights()


def prune(base_weights, training):
    """The channels that are masked at the end, and top-1 of the slim model."""
    config = configured(training)
    train_data, validation_data = sources_of(config)
    model = small_network()
    model.set_weights(base_weights)
    trainer = resrep_dist.Trainer(model, resrep_dist.trace(model), config, train_data, validation_data, cluster=CLUSTER)
    trainer.start()
    trainer.train_until(trainer.num_steps)
    masks = np.concatenate([variable.numpy() for name, variable in trainer.state.items() if name.endswith("mask")])
    slim, certificate = resrep_dist.merge(trainer.model, trainer.graph, validation_data.images)
    assert trainer.pruner.num_masked_alive() == 0
    return masks == 0, Evaluator(slim).top1(validation_data, 360)


@pytest.fixture(scope="module")
def in_float32(base_weights):
    return prune(base_weights, {})


@pytest.mark.parametrize(
    "training, share_of_masks",
    [
        ({"xla": True}, 1.0),
        # Batch norm by the statistics of 16 samples is another function than by those of 64.
        ({"gradient_accumulation_steps": 4}, 0.0),
        ({"precision": "mixed_float16"}, 0.5),
        ({"precision": "mixed_bfloat16"}, 0.5),
    ],
    ids=["xla", "accumulation", "mixed_float16", "mixed_bfloat16"],
)
@pytest.mark.slow
def test_the_end_is_as_good_and_masks_are_mostly_the_same(base_weights, in_float32, training, share_of_masks):
    masked, top1 = prune(base_weights, training)
    expected, expected_top1 = in_float32
    # Row norms start equal, all 1, so small differences decide between neighbours.
    common = (masked & expected).sum() / max(masked.sum(), expected.sum())
    print(f"{training}: top-1 {top1:.2f} and {expected_top1:.2f}, {masked.sum()} masked, {100 * common:.0f} % the same")
    assert expected.any() and common >= share_of_masks
    assert abs(top1 - expected_top1) <= 3.0
