"""The settings that a program gives: what is refused, and what is taken."""

import types

import resrep_dist
from resrep_dist.errors import ConfigError, HostError
from resrep_dist.runs import library
from tests.networks import random_source, small_network

import numpy as np
import pytest


@pytest.fixture(scope="module")
def model():
    return small_network()


def refused(model, **options):
    with pytest.raises(ConfigError) as error:
        resrep_dist.prune(model, random_source(8), random_source(8), console=None, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"learning_rate": 0.1}, "settings: learning_rate: unknown key; did you mean `train.learning_rate` or `base."),
        ({"round_to": 8}, "settings: round_to: unknown key; did you mean `prune.round_to`?"),
        ({"trian": {"learning_rate": 0.1}}, "settings: trian: unknown key; did you mean `train`?"),
        ({"train": 3}, "settings: train: received 3, expected a section with keys below it"),
        ({"train": None}, "settings: train: received None, expected a section with keys below it"),
        ({"shrink": None}, "settings: shrink: received None, expected a section with keys below it"),
        ({"prune": None}, "settings: prune: received None, expected a section with keys below it; leave it out"),
        ({"prune": [1]}, "settings: prune: received [1], expected a section with keys below it"),
        ({"seed": "one"}, "settings: seed: received 'one', expected integer"),
        ({"task": "multilabel"}, "task: received 'multilabel', which needs 0 or 1 for each class"),
        ([("train", {})], "settings: received [('train', {})], expected a dict of sections, as in {'train': {'lear"),
        ("train.learning_rate=1", "settings: received 'train.learning_rate=1', expected a dict of sections"),
        ({3: {}}, "settings: 3: unknown key"),
        ({(1, 2): {}}, "expected names as keys, and numbers, text and lists as values"),
    ],
)
def test_settings_that_are_no_sections_are_refused_as_on_the_command_line(model, settings, expected):
    assert expected in refused(model, settings=settings)


def test_settings_beside_the_sections_and_mappings_of_other_kinds_are_taken(model):
    settings = types.MappingProxyType({"seed": 7, "train": types.MappingProxyType({"momentum": 0.5}), "base": None})
    config = library._config(model, random_source(8), 0.5, None, library.read_settings(settings))
    assert (config.seed, config.train.momentum, config.train.learning_rate, config.base) == (7, 0.5, 0.01, None)
    assert library.read_settings(None) == {}


def test_numbers_of_numpy_say_the_same_to_the_ranks_and_to_the_run(model, monkeypatch):
    started = []

    def start(cluster, deterministic=True):
        started.append(deterministic)
        raise HostError("no ranks here", 0)

    monkeypatch.setattr(resrep_dist.Cluster, "__init__", start)
    settings = {"training": {"deterministic": np.bool_(False)}, "train": {"learning_rate": np.float32(0.5)}}
    with pytest.raises(HostError):
        resrep_dist.prune(model, random_source(8), random_source(8), settings=settings)
    assert started == [False]
    config = library._config(model, random_source(8), np.float32(0.5), None, library.read_settings(settings))
    assert (config.training.deterministic, config.train.learning_rate) == (False, 0.5)
    assert config.prune.target_macs_fraction == 0.5


@pytest.mark.parametrize("num_epochs", ["3", 0, -1.0, float("nan"), np.inf, True, [3], 1 + 0j, np.array([3.0])])
def test_lengths_that_are_none_are_refused(model, num_epochs):
    expected = "expected a number greater than 0: the length of the pruning in epochs"
    assert expected in refused(model, num_epochs=num_epochs)


@pytest.mark.parametrize("num_epochs", [3, 3.0, np.int64(3), np.float32(3), np.float16(3)])
def test_lengths_of_any_type_of_number_are_the_same(model, num_epochs):
    config = library._config(model, random_source(8), 0.5, num_epochs, {})
    assert config == library._config(model, random_source(8), 0.5, 3, {}) and config.train.num_epochs == 3.0


@pytest.mark.parametrize("target", ["0.5", None, 1.5, float("nan"), [0.5]])
def test_targets_that_are_none_are_refused(model, target):
    assert "prune" in refused(model, target=target)
