import time

from resrep_dist.config import ModelConfig
from resrep_dist.graph import trace
from resrep_dist.graph.macs import MultiplyAdds
from resrep_dist.models.building import build_model
from resrep_dist.pruning.rules import (
    group_norms,
    last_step_to_die,
    reset_gradient,
    row_norms,
    select_masks,
    update_compactor,
)
from tests.networks import grouped_classifier

import numpy as np
import pytest
import tensorflow as tf

# Two layers in a row: 10 w0 + 4 w0 w1 + 6 w1.
MACS = MultiplyAdds(100, (10, 6), {(0, 1): 4})
# The same, and a convolution between two additions of the first group: 3 w0 w0.
SQUARED = MultiplyAdds(100, (10, 6), {(0, 1): 4, (0, 0): 3})


def test_reset_gradient_is_the_equation_row_by_row():
    random = np.random.default_rng(0)
    kernel, gradient = random.normal(size=(2, 5, 4))
    mask = np.array([1.0, 0.0, 1.0, 0.0])
    received = reset_gradient(tf.constant(kernel), tf.constant(gradient), mask, row_norms(tf.constant(kernel)), 0.3)
    for row in range(4):
        expected = mask[row] * gradient[:, row] + 0.3 * kernel[:, row] / np.sqrt((kernel[:, row] ** 2).sum())
        np.testing.assert_allclose(received[:, row], expected, rtol=1e-12)


def test_the_penalty_of_kept_rows_can_have_a_strength_of_its_own():
    random = np.random.default_rng(0)
    kernel, velocity, gradient = (tf.constant(values) for values in random.normal(size=(3, 5, 4)))
    mask = np.array([1.0, 0.0, 1.0, 0.0])

    def updated(strength, **kept):
        return update_compactor(
            kernel, velocity, gradient, tf.constant(mask), row_norms(kernel),
            learning_rate=tf.constant(0.1, tf.float64), lasso_strength=strength, momentum=0.9, radial=True, **kept,
        )  # fmt: skip

    both = updated(0.3, kept_lasso_strength=0.01)
    for mixed, strong, weak in zip(both, updated(0.3), updated(0.01), strict=True):
        np.testing.assert_array_equal(mixed, np.where(mask == 0, strong, weak))
        assert not np.allclose(strong, weak)


@pytest.mark.parametrize("radial", [False, True])
def test_a_zero_row_gets_no_penalty_and_never_nan(radial):
    kernel = tf.zeros([3, 3])
    kernel, velocity = update_compactor(
        kernel, kernel, kernel, tf.constant([1.0, 0.0, 0.0]), row_norms(kernel),
        learning_rate=0.1, lasso_strength=0.1, momentum=0.9, radial=radial,
    )  # fmt: skip
    assert not np.any(kernel.numpy()) and not np.any(velocity.numpy())


def test_a_masked_row_dies_in_a_straight_line_to_exactly_zero_and_stays():
    random = np.random.default_rng(1)
    kernel = tf.constant(random.normal(size=(6, 2)))
    # Partly sideways, and outwards: the objective was making the row longer.
    velocity = tf.constant(random.normal(size=(6, 2))) - 3.0 * kernel
    start = kernel.numpy()[:, 1].copy()
    died_at, norm = None, np.linalg.norm(start)
    for step in range(400):
        gradient = tf.constant(random.normal(size=(6, 2)))
        kernel, velocity = update_compactor(
            kernel, velocity, gradient, tf.constant([1.0, 0.0], tf.float64), row_norms(kernel),
            learning_rate=tf.constant(0.01, tf.float64), lasso_strength=0.05, momentum=0.9, radial=True,
        )  # fmt: skip
        row = kernel.numpy()[:, 1]
        if not row.any():
            died_at = died_at or step
            assert not velocity.numpy()[:, 1].any()
        else:
            assert died_at is None
            assert np.linalg.norm(row) < norm
            norm = np.linalg.norm(row)
            cosine = row @ start / np.linalg.norm(row) / np.linalg.norm(start)
            assert cosine == pytest.approx(1.0, abs=1e-9)
    assert died_at is not None
    assert row_norms(kernel).numpy()[0] > 0


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_a_row_masked_at_the_last_step_in_time_dies_and_one_step_later_does_not(momentum):
    rates = 0.02 * (0.5 + 0.5 * np.cos(np.pi * np.arange(300) / 300))
    options = {"lasso_strength": 1.0 - momentum, "momentum": momentum}
    last = last_step_to_die(rates, **options)
    assert 0 < last < 300

    def final_norm(first):
        kernel = tf.constant([[0.6], [0.8]], tf.float64)
        velocity = tf.zeros_like(kernel)
        for rate in rates[first:]:
            kernel, velocity = update_compactor(
                kernel, velocity, velocity, tf.constant([0.0], tf.float64), row_norms(kernel), learning_rate=rate,
                radial=True, **options,
            )  # fmt: skip
        return float(row_norms(kernel)[0])

    assert final_norm(last) == 0.0
    assert final_norm(last + 1) > 0.0
    assert last_step_to_die(rates, lasso_strength=1e-9, momentum=momentum) == 0


def test_a_groups_norm_is_the_root_mean_square_of_its_layers_rows():
    norms = [np.array([3.0, 0.0, 1.0]), np.array([4.0, 0.0, 0.0])]
    np.testing.assert_allclose(group_norms(norms), [np.sqrt(12.5), 0.0, np.sqrt(0.5)])
    single = np.random.default_rng(0).uniform(size=100).astype(np.float32)
    np.testing.assert_array_equal(group_norms([single]), single)


def brute_force(norms, target, max_chosen, min_channels, macs):
    widths = [len(n) for n in norms]
    masks = [np.ones(len(n), bool) for n in norms]
    channels = sorted((n, i, c) for i, layer in enumerate(norms) for c, n in enumerate(layer))
    chosen = 0
    for _, layer, channel in channels:
        if macs.total(widths) <= target or chosen == max_chosen:
            break
        if widths[layer] > min_channels:
            masks[layer][channel] = False
            widths[layer] -= 1
            chosen += 1
    return masks


@pytest.mark.parametrize("macs", [MACS, SQUARED], ids=["chain", "stream"])
@pytest.mark.parametrize("seed", range(20))
def test_selection_is_what_a_plain_loop_over_sorted_channels_gives(seed, macs):
    random = np.random.default_rng(seed)
    # Few distinct values: ties must go by layer, then channel.
    norms = [random.integers(0, 6, size).astype(np.float32) + 1 for size in (9, 13)]
    target, most, least = random.integers(100, 700), int(random.integers(0, 22)), int(random.integers(1, 4))
    selection = select_masks(norms, macs, target_cost=target, max_chosen=most, min_channels=least)
    for received, expected in zip(selection.masks, brute_force(norms, target, most, least, macs), strict=True):
        np.testing.assert_array_equal(received, expected)
    assert selection.cost == macs.total(selection.widths)


def test_widths_are_rounded_up_and_dead_rows_are_not_revived():
    random = np.random.default_rng(0)
    norms = [random.uniform(0.1, 1, 32), random.uniform(0.1, 1, 32)]
    target = 0.4 * MACS.total([32, 32])
    selection = select_masks(norms, MACS, target_cost=target, max_chosen=10**6, round_to=8)
    assert all(width % 8 == 0 for width in selection.widths)
    assert selection.cost <= target
    norms[0][:11] = 0
    norms[1][:3] = 0
    # However much may be left: the widths are multiples, though 21 and 29 channels live.
    for share in (0.4, 0.8, 0.95):
        target = share * MACS.total([32, 32])
        selection = select_masks(norms, MACS, target_cost=target, max_chosen=10**6, round_to=8)
        assert not selection.masks[0][:11].any() and not selection.masks[1][:3].any()
        assert all(width % 8 == 0 for width in selection.widths)
    assert list(selection.widths) == [16, 24]


def test_the_parts_of_a_grouped_layer_make_up_a_multiple_together():
    graph = trace(grouped_classifier(16, 10))
    # 16 and 32 channels.
    assert [group.num_parts for group in graph.groups] == [4, 4] and graph.multiples(4) == [1, 1]
    multiples, target = graph.multiples(8), 0.5 * graph.macs.total(graph.widths)
    norms = [np.linspace(0.1, 1, width) for width in graph.widths]
    widths = select_masks(norms, graph.macs, target_cost=target, max_chosen=10**6, round_to=multiples).widths
    assert all(width * group.num_parts % 8 == 0 for width, group in zip(widths, graph.groups, strict=True))
    assert graph.macs.total(widths) <= target


class InBlocks(MultiplyAdds):
    """Gets faster at multiples of 4 only."""

    def fast_widths(self, group, full):
        return [*range(4, full, 4), full]


def test_widths_go_to_those_at_which_the_cost_falls_and_no_dead_row_is_revived():
    random = np.random.default_rng(0)
    cost = InBlocks(100, (10, 6), {(0, 1): 4})
    norms = [random.uniform(0.1, 1, 32), random.uniform(0.1, 1, 18)]
    target = 0.4 * cost.total([32, 18])
    selection = select_masks(norms, cost, target_cost=target, max_chosen=10**6)
    assert all(width % 4 == 0 for width in selection.widths) and selection.cost <= target
    with_rounding = select_masks(norms, cost, target_cost=target, max_chosen=10**6, round_to=8)
    assert all(width % 8 == 0 or width == full for width, full in zip(with_rounding.widths, (32, 18), strict=True))
    # Of 32 channels 13 are dead: 19 would be slow, and 20 would need one of them back.
    norms[0][:13] = 0
    selection = select_masks(norms, cost, target_cost=0.9 * cost.total([32, 18]), max_chosen=10**6)
    assert selection.widths[0] == 16 and not selection.masks[0][:13].any()
    norms[0][:30] = 0
    assert select_masks(norms, cost, target_cost=target, max_chosen=10**6).widths[0] == 2


def test_dead_channels_stay_masked_where_the_target_is_met_without_them():
    # Zeros all sort as equal: the first group alone leads to the target now, whatever led to it before.
    norms = [np.array([0.0] * 9 + [1.0] * 9), np.array([0.0] + [1.0] * 9)]
    selection = select_masks(norms, MACS, target_cost=0.6 * MACS.total([18, 10]), max_chosen=12)
    assert not selection.masks[0][:9].any() and selection.masks[0][9:].all()
    np.testing.assert_array_equal(selection.masks[1], [False] + [True] * 9)
    assert selection.cost == MACS.total([9, 9]) <= 0.6 * MACS.total([18, 10])


def test_rounding_makes_progress_with_few_channels_per_update():
    norms = [np.linspace(0.1, 1, 32), np.linspace(0.15, 1, 32)]
    target, num_chosen = 0.4 * MACS.total([32, 32]), 0
    for _ in range(40):
        selection = select_masks(norms, MACS, target_cost=target, max_chosen=num_chosen + 2, round_to=8)
        assert selection.num_chosen <= num_chosen + 2
        num_chosen = selection.num_chosen
    assert selection.cost <= target


def test_a_resnet50_update_is_fast_enough_to_be_free():
    graph = trace(build_model(ModelConfig(name="resnet50", num_classes=1000, image_size=224)))
    norms = [np.random.default_rng(0).uniform(size=width) for width in graph.widths]
    target = 0.455 * graph.macs.total(graph.widths)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        selection = select_masks(norms, graph.macs, target_cost=target, max_chosen=10**6)
        times.append(time.perf_counter() - start)
    assert selection.cost <= target
    # The figure is for the reader (5 ms is the aim); the bound only catches a change of complexity.
    print(f"ResNet-50 mask update: {1000 * min(times):.1f} ms")
    assert min(times) < 0.5


def test_one_channel_fewer_saves_what_the_totals_say():
    for group, fewer in enumerate(([6, 9], [7, 8])):
        assert SQUARED.per_channel([7, 9])[group] == SQUARED.total([7, 9]) - SQUARED.total(fewer)
