"""The configurations in `configs/` load, and their models are what they say."""

from pathlib import Path

from resrep_dist.config import load_config
from resrep_dist.graph import trace
from resrep_dist.models.building import build_model

import pytest

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


# Large models take long to build; golden and graph tests build the same architectures.
SMALL = [path for path in CONFIGS if path.stem in ("digits_resnet20", "vgg16_cifar10", "mobilenet_v1_imagenet")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_loads_and_names_its_command(path):
    config = load_config(path)
    assert config.model.name in path.stem
    assert f"configs/{path.name}" in path.read_text() or path.stem == "digits_resnet20"


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path in SMALL else pytest.mark.slow, id=path.stem) for path in CONFIGS],
)
def test_a_configurations_model_can_reach_its_target(path):
    config = load_config(path)
    model = build_model(config.model)
    graph = trace(model, config.prune.exclude)
    lowest = graph.macs.total([config.prune.min_channels] * len(graph.groups))
    assert lowest < config.prune.target_macs_fraction * graph.macs.total(graph.widths)
    assert model.output_shape[-1] == config.model.num_classes


def test_the_papers_resnet50_has_its_published_hyper_parameters():
    config = load_config(next(path for path in CONFIGS if path.stem == "resnet50_imagenet"))
    assert (config.train.num_epochs, config.train.learning_rate, config.data.global_batch_size) == (180, 0.01, 256)
    prune = config.prune
    assert (prune.target_macs_fraction, prune.lasso_strength, prune.compactor_momentum) == (0.455, 1e-4, 0.99)
    assert (prune.mask_start_epochs, prune.mask_interval_steps, prune.channels_per_update) == (5, 200, 4)


def test_large_batches_keep_the_learning_rate_of_a_sample_and_the_pace_of_the_masks():
    small, large = (
        load_config(next(path for path in CONFIGS if path.stem == name))
        for name in ("resnet50_imagenet", "resnet50_imagenet_large_batch")
    )
    factor = large.data.global_batch_size / small.data.global_batch_size
    assert large.train.reference_batch_size == small.data.global_batch_size and large.train.warmup_epochs > 0
    assert large.train.learning_rate == small.train.learning_rate
    assert large.prune.mask_interval_steps == int(small.prune.mask_interval_steps / factor)
