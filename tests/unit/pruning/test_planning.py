"""A schedule that nobody set reaches its target, and a schedule that somebody set wrongly is told so in numbers."""

import dataclasses
import re

from resrep_dist.config import PruneConfig
from resrep_dist.graph import trace
from resrep_dist.pruning.planning import plan_masks, update_rate
from resrep_dist.pruning.rules import last_step_to_die, steps_to_die, strength_to_die
from tests.networks import small_network

import numpy as np
import pytest


@pytest.fixture(scope="module")
def graph():
    return trace(small_network())


def cosine(num_steps, peak=0.02):
    return 0.5 * peak * (1.0 + np.cos(np.pi * np.arange(num_steps) / num_steps))


def steps(num_steps, peak=0.02):
    return peak * 0.1 ** (np.arange(num_steps) >= num_steps // 2)


@pytest.mark.parametrize("rates", [cosine, steps])
@pytest.mark.parametrize("num_steps", [12, 60, 943, 20_000])
@pytest.mark.parametrize("hand_set", [{}, {"mask_start_epochs": 0.5}, {"mask_stop_fraction": 0.5}, {"min_channels": 4}])
def test_what_is_chosen_can_mask_every_channel_and_kill_the_last_row(graph, rates, num_steps, hand_set):
    rates, config = rates(num_steps), PruneConfig(target_macs_fraction=0.5, **hand_set)
    plan = plan_masks(config, graph, rates, steps_per_epoch=10.0)
    assert plan.problems() == []
    least = config.min_channels * len(graph.groups)
    assert plan.num_updates * plan.config.channels_per_update >= sum(graph.widths) - least
    options = {"lasso_strength": plan.lasso_strength, "momentum": 0.99}
    assert plan.first_step <= plan.last_step <= last_step_to_die(rates, **options)
    assert plan.death_steps == steps_to_die(rates, plan.first_step, **options) <= num_steps - plan.first_step
    assert plan.first_step < num_steps / 2, "half of the phase is left for the rest"
    # The resolved numbers give the same schedule when they are read again.
    again = plan_masks(plan.config, graph, rates, steps_per_epoch=10.0)
    assert again.chosen == () and dataclasses.replace(again, chosen=plan.chosen) == plan


def test_numbers_of_the_user_stay_and_the_paper_bounds_the_penalty(graph):
    config = PruneConfig(target_macs_fraction=0.5, lasso_strength=0.5, channels_per_update=1)
    plan = plan_masks(config, graph, cosine(900), steps_per_epoch=10.0)
    assert (plan.config.lasso_strength, plan.config.channels_per_update) == (0.5, 1)
    assert plan.chosen == ("mask_start_epochs", "mask_interval_steps")
    assert "Chosen: prune.mask_start_epochs 4.5, prune.mask_interval_steps" in plan.describe()
    long = plan_masks(PruneConfig(target_macs_fraction=0.5), graph, cosine(400_000), steps_per_epoch=1000.0)
    assert (long.lasso_strength, long.config.mask_start_epochs, long.interval_steps) == (1e-4, 5.0, 200)


def test_rows_with_a_penalty_of_their_own_die_in_a_tenth_of_the_phase(graph):
    joint = PruneConfig(target_macs_fraction=0.5)
    config = dataclasses.replace(joint, kept_lasso_strength=1e-4)
    plan = plan_masks(config, graph, cosine(1000), steps_per_epoch=10.0)
    assert 0.5 * 100 < plan.death_steps <= 100 and plan.problems() == []
    assert plan.lasso_strength > plan_masks(joint, graph, cosine(1000), steps_per_epoch=10.0).lasso_strength
    assert plan.first_step + plan.death_steps < plan.pruned_step < 500
    assert 500 < plan_masks(joint, graph, cosine(1000), steps_per_epoch=10.0).pruned_step <= 1000
    weak = dataclasses.replace(config, lasso_strength=1e-4)
    assert plan_masks(weak, graph, cosine(1000), steps_per_epoch=10.0).pruned_step == 1000, "none dies in time"
    slow = dataclasses.replace(config, lasso_strength=0.5, mask_interval_steps=100, channels_per_update=1)
    plan = plan_masks(slow, graph, cosine(1000), steps_per_epoch=10.0)
    assert plan.pruned_step > plan.first_step + 100 * (plan.num_needed_updates - 1) > 500, "not before the last masks"
    # In a long phase the paper's is enough.
    assert plan_masks(config, graph, cosine(400_000), steps_per_epoch=10.0).lasso_strength == 1e-4


@pytest.mark.parametrize("hand_set", [{}, {"mask_stop_fraction": 0.6}, {"mask_start_epochs": 30}])
def test_a_weak_penalty_is_told_the_strength_that_is_enough(graph, hand_set):
    config = PruneConfig(
        target_macs_fraction=0.5, lasso_strength=1e-4, mask_interval_steps=10, channels_per_update=2, **hand_set
    )
    (problem,) = plan_masks(config, graph, cosine(900), steps_per_epoch=10.0).problems()
    assert "a row of norm 1 does not die within the phase, the masks need " in problem
    enough = float(re.search(r"raise prune.lasso_strength \(0.0001\) to at least ([0-9.e-]+)", problem)[1])
    enough = dataclasses.replace(config, lasso_strength=enough)
    assert plan_masks(enough, graph, cosine(900), steps_per_epoch=10.0).problems() == []
    assert ("lower prune.mask_stop_fraction" in problem) == (config.mask_stop_fraction is not None)


@pytest.mark.parametrize(("num_steps", "is_hurried"), [(80, True), (320, True), (400, False), (943, False)])
def test_a_phase_in_which_rows_die_in_a_hurry_is_told_how_long_it_should_be(graph, num_steps, is_hurried):
    config = PruneConfig(target_macs_fraction=0.5)
    plan = plan_masks(config, graph, cosine(num_steps), steps_per_epoch=10.0)
    assert plan.problems() == [] and len(plan.cautions()) == is_hurried and plan.warnings() == plan.cautions()
    assert (plan.death_steps < 100) == is_hurried
    for caution in plan.cautions():
        assert f"a row of norm 1 dies in about {plan.death_steps} steps, less than the 100 over which" in caution
        epochs = float(re.search(rf"from {num_steps / 10:g} to at least (\d+), 3\d\d steps", caution)[1])
        longer = plan_masks(config, graph, cosine(round(10 * epochs)), steps_per_epoch=10.0)
        assert longer.cautions() == [], "what is advised is enough"
    # A penalty that somebody set, in a phase that is long enough.
    strong = dataclasses.replace(config, lasso_strength=0.5)
    (caution,) = plan_masks(strong, graph, cosine(943), steps_per_epoch=10.0).cautions()
    expected = "Set prune.kept_lasso_strength to 0.0001, or lower prune.lasso_strength, or set it to auto."
    assert caution.endswith(expected)
    apart = dataclasses.replace(strong, kept_lasso_strength=1e-4)
    assert plan_masks(apart, graph, cosine(943), steps_per_epoch=10.0).cautions() == []
    # Without momentum there is no memory to be faster than.
    forgetful = dataclasses.replace(config, compactor_momentum=0.0)
    assert plan_masks(forgetful, graph, cosine(num_steps), steps_per_epoch=10.0).cautions() == []


def test_too_few_updates_are_told_what_to_change(graph):
    config = PruneConfig(
        target_macs_fraction=0.2, lasso_strength=0.5, mask_start_epochs=1, mask_interval_steps=50, channels_per_update=1
    )
    (problem,) = plan_masks(config, graph, cosine(100), steps_per_epoch=10.0).problems()
    assert problem.startswith("The target will be missed: a row of norm 1 dies in about 15 steps, the masks need ")
    assert "raise prune.channels_per_update, lower prune.mask_interval_steps" in problem


def test_steps_and_strength_are_the_inverse_of_the_last_step_in_time():
    rates = cosine(500)
    strength = strength_to_die(rates, 123, momentum=0.99)
    assert last_step_to_die(rates, lasso_strength=1.0001 * strength, momentum=0.99) == 123
    assert steps_to_die(rates, 123, lasso_strength=1.0001 * strength, momentum=0.99) <= 500 - 123
    assert steps_to_die(rates, 123, lasso_strength=0.99 * strength, momentum=0.99) is None
    assert strength_to_die(rates, 500, momentum=0.99) is None


def test_fit_knows_only_the_steps_and_gets_an_interval_for_them(graph):
    interval_steps, max_channels = update_rate(PruneConfig(target_macs_fraction=0.5), graph, 100, 600)
    assert interval_steps == 20
    assert (600 // 20 - 99 // 20) * max_channels >= sum(graph.widths) - 3
