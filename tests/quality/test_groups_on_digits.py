"""Groups of several layers and constants of dead channels, trained: to half the multiply-adds on the digits."""

from resrep_dist.cluster import Cluster
from resrep_dist.config import load_config
from resrep_dist.data import load_sources
from resrep_dist.evaluation import Evaluator
from resrep_dist.graph import trace
from resrep_dist.merging import merge
from resrep_dist.models import build_model
from resrep_dist.trainer import Trainer
from tests.networks import DIGITS_CONFIG

import pytest
from tensorflow import keras


def mobilenet(config):
    size = config.model.image_size
    return keras.applications.MobileNet((size, size, 3), alpha=0.25, weights=None, classes=10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "build, overrides",
    [
        (mobilenet, ["model.image_size=32"]),
        (lambda config: build_model(config.model), ["prune.residual_groups=true"]),
    ],
    ids=["mobilenet", "residual_resnet20"],
)
def test_half_of_the_multiply_adds_go_and_the_merge_is_exact(build, overrides):
    config = load_config(DIGITS_CONFIG, ["prune.target_macs_fraction=0.5", *overrides])
    keras.utils.set_random_seed(config.seed)
    train_data, validation_data = load_sources(config)
    model, cluster = build(config), Cluster()
    Trainer(model, None, config, train_data, validation_data, cluster=cluster).run()
    base_top1 = Evaluator(model).top1(validation_data, 256)
    graph = trace(model, residual_groups=config.prune.residual_groups)
    trainer = Trainer(model, graph, config, train_data, validation_data, cluster=cluster)
    trainer.run()
    slim, certificate = merge(trainer.model, graph, validation_data.images, tolerance=config.merge.tolerance)
    fraction = trainer.pruner.macs_fraction([certificate.channels[group.name]["kept"] for group in graph.groups])
    top1 = Evaluator(slim).top1(validation_data, 256)
    print(f"{base_top1:.2f} -> {top1:.2f} % at {100 * fraction:.1f} %, step {trainer.step}, {certificate}")
    assert fraction <= 0.5
    assert certificate.max_relative_difference <= 1e-4
    assert top1 >= base_top1 - 2.0
