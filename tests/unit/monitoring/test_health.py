"""What is said of a run that goes wrong without an error."""

import logging

import resrep_dist
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import BrokenModelError, ConfigError, TargetMissedError
from resrep_dist.layers.insertion import insert_compactors
from resrep_dist.monitoring.defaults import default_hooks
from resrep_dist.monitoring.health import Health, guessing_loss
from resrep_dist.pruning.pruner import Pruner
from resrep_dist.reporting.problems import problems_of, require_success
from tests.networks import random_source, small_config, small_network, train_state

import numpy as np
import pytest


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("resrep_dist"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def make_pruner(last_step=100, **prune):
    config = small_config(prune={"target_macs_fraction": 0.3, **prune})
    model = small_network()
    graph = resrep_dist.trace(model)
    model = insert_compactors(model, graph)
    return (
        Pruner(train_state(model, graph), graph, config.prune, Cluster(), first_step=10, last_step=last_step),
        model,
        config,
    )


def health_of(config):
    return Health(config.prune, guessing_loss(config.training, config.model.num_classes))


def see_losses(losses, **changes):
    health = health_of(small_config(**changes))
    for step, loss in enumerate(losses):
        health.see(10 * step, loss, None)


def test_a_loss_that_stays_above_guessing_is_said_once(warnings):
    see_losses([2.4, 2.6, 2.7, 2.6, 2.6, 2.6, 2.8, 9.0, 9.0, 9.0])
    (warning,) = warnings()
    assert warning.startswith(
        "Step 50: the loss, 2.6, stays above that of guessing, 2.3: the training diverges; lower "
    )


def test_a_loss_that_stays_far_above_its_lowest_is_said_once(warnings):
    see_losses([2.0, 0.3, 1.5, 1.5, 1.6, 1.5, 1.5, 1.5, 1.5, 2.0])
    (warning,) = warnings()
    assert warning.startswith("Step 60: the loss, 1.5, stays far above its lowest, 0.3: the training diverges")


@pytest.mark.parametrize(
    "losses",
    [
        [2.9, 2.8, 2.7, 2.6, 2.3, 2.1, 1.0],  # the start of a training
        [0.5, 3.0, 3.0, 3.0, 3.0, 0.5] * 3,  # a spike that passes
        [0.01] + [0.2] * 20,  # channels die
        [1.2] + [1.9] * 20,
        [0.0] * 20,
    ],
)
def test_ordinary_losses_are_no_reason_to_warn(warnings, losses):
    see_losses(losses)
    assert not warnings()


def test_with_another_loss_guessing_is_not_known(warnings):
    see_losses([50.0] * 20, training={"loss": "categorical_hinge"})
    assert not warnings()
    see_losses([50.0] + [160.0] * 5, training={"loss": "categorical_hinge"})
    assert "far above its lowest, 50" in warnings()[0]


def test_with_a_teacher_guessing_is_not_known(warnings):
    """The loss then is that of the teacher's answers in part, whose size has nothing to do with guessing."""
    config, graph = small_config(train={"distillation": {"weight": 0.5}}), resrep_dist.trace(small_network())
    options = {"cluster": Cluster(), "folder": None, "sweep_row": None, "console": None}
    _, health = default_hooks(config, graph, "prune", 100, **options)
    _, of_base = default_hooks(config, None, "base", 100, **options)
    for step in range(20):
        health.see(step, 4.0, None)
    assert not warnings()
    for step in range(20):
        of_base.see(step, 4.0, None)
    assert "stays above that of guessing, 2.3" in warnings()[0]


def mask(model, name, kept, is_dead):
    compactor = model.get_layer(name)
    values = np.arange(compactor.mask.shape[0]) < kept
    compactor.mask.assign(values.astype(np.float32))
    if is_dead:
        compactor.kernel.assign(compactor.kernel.numpy() * values)


def test_layers_at_their_least_are_named_when_they_are_masked_and_when_they_are_dead(warnings):
    pruner, model, config = make_pruner(min_channels=2)
    health = health_of(config)
    health.see(10, 1.0, pruner)
    assert not warnings()
    mask(model, "conv1_compactor", 2, is_dead=False)
    for step in (20, 30):
        health.see(step, 1.0, pruner)
    assert len(warnings()) == 1
    assert "Step 20: layer conv1 goes to its minimum: the masks leave 2 of its 12 channels" in warnings()[0]
    mask(model, "conv1_compactor", 2, is_dead=True)
    mask(model, "conv2_compactor", 3, is_dead=True)
    for step in (40, 50):
        health.see(step, 1.0, pruner)
    assert warnings()[1:] == ["Step 40: layer conv1 is at its minimum: 2 of its 12 channels live."]


def test_a_layer_whose_channels_all_fade_is_named(warnings):
    pruner, model, config = make_pruner()
    kernel = model.get_layer("conv0_compactor").kernel
    kernel.assign(kernel * 5e-4)
    health_of(config).see(10, 1.0, pruner)
    (warning,) = warnings()
    assert "layer conv0 carries almost no signal: the largest row norm of its 8 channels is 0.0005" in warning


def test_a_missed_target_is_said_when_masks_stop(warnings):
    pruner, _, config = make_pruner(last_step=57)
    health = health_of(config)
    for step in (10, 40, 49):
        health.see(step, 1.0, pruner)
    assert not warnings()
    for step in (50, 60):
        health.see(step, 1.0, pruner)
    assert len(warnings()) == 1
    assert "Step 50: the target will be missed: masks no longer change and leave 100.0 % " in warnings()[0]


def test_a_target_out_of_reach_is_refused_and_one_out_of_time_is_said_at_the_start(warnings):
    with pytest.raises(ConfigError, match=r"received 0.05, expected more than 0.0552\d*: .* prune.min_channels 1 "):
        make_pruner(target_macs_fraction=0.05)
    with pytest.raises(ConfigError, match=r"more than 0.7323: .* prune.min_channels 3 and prune.round_to 8"):
        make_pruner(target_macs_fraction=0.3, min_channels=3, round_to=8)
    make_pruner(channels_per_update=4)[0].warn_if_too_slow()
    assert not warnings()
    make_pruner(last_step=30, channels_per_update=2)[0].warn_if_too_slow()
    (warning,) = warnings()
    assert "it takes at least 8 channels, and 3 updates of the masks choose at most 2 each" in warning


def test_a_run_says_what_becomes_of_it(warnings):
    source = random_source(64)
    model = small_network()
    config = small_config(
        train={"num_epochs": 30, "learning_rate": 30.0, "momentum": 0.0},
        prune={"mask_start_epochs": 2, "max_extension_epochs": 0},
        # So the steps stay finite, however large.
        training={"gradient_clip_norm": 1.0},
        logging={"interval_steps": 2},
    )
    resrep_dist.Trainer(model, resrep_dist.trace(model), config, source, source).run()
    assert any("stays above that of guessing" in warning for warning in warnings()), warnings()
    # At such a rate rows die in a hurry however long the phase is, so no number of epochs is proposed.
    assert any("dies in about" in w and w.endswith("or lower train.learning_rate.") for w in warnings()), warnings()


def test_strict_has_a_code_for_a_missed_target_and_one_for_a_broken_model():
    report = {"base": {"macs": 100}, "slim": {"macs": 60}, "target_macs_fraction": 0.5, "problems": []}
    require_success(report | {"target_missed": False})
    require_success({"final": {"top1": 90.0}, "problems": []})
    with pytest.raises(TargetMissedError, match=r"60.0 % of the multiply-adds are left, 50.0 % were") as missed:
        require_success(report | {"target_missed": True})
    with pytest.raises(BrokenModelError, match="it guesses") as broken:
        require_success(report | {"target_missed": True, "problems": ["it guesses"]})
    assert (missed.value.exit_code, broken.value.exit_code) == (9, 10)


def test_a_broken_result_is_marked():
    def report(base, slim):
        return {"base": {"top1": base}, "slim": {"top1": slim}}

    assert problems_of(report(99.0, 98.0), 10) == []
    assert problems_of({"final": {"top1": 76.0}}, 1000) == []
    assert problems_of({"final": {"top1": 11.0}}, 10) == [
        "the final model is broken: top-1 11.00 %, guessing gives 10.00 %"
    ]
    broken, lost = problems_of(report(99.0, 10.0), 10)
    assert broken == "the slim model is broken: top-1 10.00 %, guessing gives 10.00 %"
    assert lost == "the slim model has lost more than half of the base's top-1: 10.00 % are left of 99.00 %"
    assert problems_of(report(90.0, 60.0), 2) == []
    assert len(problems_of(report(90.0, 51.0), 2)) == 1
