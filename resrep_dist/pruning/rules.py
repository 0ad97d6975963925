"""The mathematics of ResRep (Ding et al., ICCV 2021) on arrays, independent of Keras, Horovod and files.

Compactor kernels have the shape [..., D_in, D_out]. The paper's row j of Q is the slice [..., :, j].
"""

import bisect
import dataclasses
from collections.abc import Sequence

from resrep_dist.graph.costs import Cost

import numpy as np
import tensorflow as tf


def row_norms(kernel: tf.Tensor) -> tf.Tensor:
    """Return the Euclidean norm of every row of a compactor (section 3.3).

    Args:
        kernel: Q, [..., D_in, D_out].

    Returns:
        [..., D_out].
    """
    return tf.norm(kernel, axis=-2)


def group_norms(norms: Sequence[np.ndarray]) -> np.ndarray:
    """Return the norm of every channel of a group: the root mean square of its row norms in the group's layers.

    The mean makes groups of many layers comparable with groups of few, so that all can be sorted together. A norm is 0
    only if all rows of the channel are zero. For a group of one layer it is the row norm itself.

    Args:
        norms: Row norms of each layer of the group, [D] each. A layer counts once for each part of the group.

    Returns:
        [D].
    """
    if len(norms) == 1:
        return norms[0]
    return np.sqrt(np.mean(np.square(norms), axis=0))


def reset_gradient(
    kernel: tf.Tensor,
    gradient: tf.Tensor,
    mask: tf.Tensor,
    norms: tf.Tensor,
    lasso_strength: float,
    kept_lasso_strength: float | None = None,
) -> tf.Tensor:
    """Return G_j = m_j g_j + lambda Q_j / ||Q_j|| for each row j: the reset gradient with the penalty (section 3.3).

    The penalty of a zero row is 0.

    Args:
        kernel: Q, [..., D_in, D_out].
        gradient: Gradient g of the objective without the penalty, averaged over all ranks, [..., D_in, D_out].
        mask: m, [..., D_out]: 1 if the objective trains the row, 0 if only the penalty does.
        norms: Row norms averaged over all ranks, [..., D_out].
        lasso_strength: lambda.
        kept_lasso_strength: lambda of the rows that are not masked; None for the same.

    Returns:
        [..., D_in, D_out].
    """
    direction = tf.math.divide_no_nan(kernel, norms[..., tf.newaxis, :])
    mask, strength = mask[..., tf.newaxis, :], tf.constant(lasso_strength, kernel.dtype)
    if kept_lasso_strength is not None:
        strength = tf.where(mask == 0, strength, tf.constant(kept_lasso_strength, kernel.dtype))
    return mask * gradient + strength * direction


def update_compactor(
    kernel: tf.Tensor,
    velocity: tf.Tensor,
    gradient: tf.Tensor,
    mask: tf.Tensor,
    norms: tf.Tensor,
    *,
    learning_rate: tf.Tensor,
    lasso_strength: float,
    momentum: float,
    radial: bool,
    kept_lasso_strength: float | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Make one step of momentum SGD: v = momentum v + G, then Q = Q - learning_rate v.

    With `radial`, a masked row keeps only the part of its velocity that points to zero. If a step would take it to zero
    or across, the row and its velocity become exactly zero. So it moves in a straight line, and its norm bounds the
    number of steps. With the plain rule, the velocity that the objective gave the row delays it: the outward part makes
    the row grow first, and the tangential part makes it circle around zero.

    Args:
        kernel: Q, [..., D_in, D_out].
        velocity: v, [..., D_in, D_out].
        gradient: As in `reset_gradient`.
        mask: As in `reset_gradient`.
        norms: As in `reset_gradient`.
        learning_rate: Learning rate of this step.
        lasso_strength: lambda of the penalty.
        momentum: Momentum of the compactors.
        radial: True for the rule `radial`, False for the rule `paper`.
        kept_lasso_strength: As in `reset_gradient`.

    Returns:
        The new Q and v, [..., D_in, D_out] each.
    """
    reset = reset_gradient(kernel, gradient, mask, norms, lasso_strength, kept_lasso_strength)
    kept = tf.constant(momentum, kernel.dtype) * velocity
    if not radial:
        velocity = kept + reset
        return kernel - learning_rate * velocity, velocity
    is_masked = (mask == 0)[..., tf.newaxis, :]
    direction = tf.math.divide_no_nan(kernel, norms[..., tf.newaxis, :])
    inwards = tf.nn.relu(tf.reduce_sum(direction * kept, axis=-2, keepdims=True))
    velocity = tf.where(is_masked, direction * inwards, kept) + reset
    travel = learning_rate * tf.reduce_sum(direction * velocity, axis=-2)
    dies = is_masked & (travel >= norms)[..., tf.newaxis, :]
    zero = tf.zeros_like(kernel)
    return tf.where(dies, zero, kernel - learning_rate * velocity), tf.where(dies, zero, velocity)


def last_step_to_die(rates: np.ndarray, *, lasso_strength: float, momentum: float, norm: float = 1.0) -> int:
    """Return the last step at which a row can be masked so that the penalty alone still takes it to zero.

    The row is assumed to be at rest. After n steps under the penalty its speed is lambda (1 - momentum^n) / (1 -
    momentum).

    Args:
        rates: Learning rate of every step, [N].
        lasso_strength: lambda of the penalty.
        momentum: Momentum of the compactors.
        norm: Norm of the row when it is masked. Compactors begin with rows of norm 1.

    Returns:
        A number of steps from 0 to N. It is also 0 if N steps are not enough.
    """

    def reaches_zero(first: int) -> bool:
        return float(rates[first:] @ (lasso_strength * _speeds(len(rates) - first, momentum))) >= norm

    low, high = 0, len(rates)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if reaches_zero(middle) else (low, middle - 1)
    return low


def strength_to_die(rates: np.ndarray, first_step: int, *, momentum: float) -> float | None:
    """Return the minimum lambda by which a row of norm 1 that is masked at a step reaches zero in time.

    Args:
        rates: As in `last_step_to_die`.
        first_step: Step at which the row is masked.
        momentum: As in `last_step_to_die`.

    Returns:
        lambda; None if no step is left.
    """
    distance = float(rates[first_step:] @ _speeds(max(0, len(rates) - first_step), momentum))
    return 1.0 / distance if distance > 0 else None


def steps_to_die(rates: np.ndarray, first_step: int, *, lasso_strength: float, momentum: float) -> int | None:
    """Return the number of steps in which the penalty takes a row of norm 1 to zero.

    Args:
        rates: As in `last_step_to_die`.
        first_step: Step at which the row is masked.
        lasso_strength: lambda of the penalty.
        momentum: As in `last_step_to_die`.

    Returns:
        A number of steps; None if the row does not reach zero.
    """
    distances = np.cumsum(rates[first_step:] * _speeds(max(0, len(rates) - first_step), momentum))
    num_steps = int(np.searchsorted(lasso_strength * distances, 1.0)) + 1
    return num_steps if num_steps <= len(distances) else None


def _speeds(num_steps: int, momentum: float) -> np.ndarray:
    """Return the speed of a row under a penalty of strength 1, after each step since it was at rest, [N]."""
    return (1.0 - momentum ** np.arange(1, num_steps + 1)) / (1.0 - momentum)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The masks chosen at one update."""

    masks: list[np.ndarray]
    """For each group, bool [D]: True = trained, False = masked."""
    num_chosen: int
    """Number of channels chosen before the widths were rounded up; the limit of the next update is based on it."""
    cost: float
    """Cost of one image at the unmasked widths, as the selection counts it: multiply-adds, or what a target names."""

    @property
    def widths(self) -> list[int]:
        """Number of unmasked channels of each group."""
        return [int(mask.sum()) for mask in self.masks]


def select_masks(
    norms: Sequence[np.ndarray],
    cost: Cost,
    *,
    target_cost: float,
    max_chosen: int,
    min_channels: int = 1,
    round_to: int | Sequence[int] = 1,
    scales: Sequence[float] | None = None,
) -> Selection:
    """Choose all masks from the norms of the channels (section 3.4); earlier masks do not matter.

    The channels of all groups are sorted by norm, ties by group and channel. They are chosen from the lowest up, until
    the cost that remains is at most `target_cost`, or `max_chosen` channels are chosen. Chosen channels are
    masked, with two exceptions. Each group keeps its `min_channels` largest, and the channels that rounding its width
    up retains. A dead channel (norm 0) stays masked, even if the target is met without it: all zeros are equal in the
    order, so the channels chosen to reach the target could be others at each update. A group with too few living
    channels for its rounded width goes to the next lower one, if that is not less than `min_channels`.

    Args:
        norms: Norms of the channels of each group, [D_i], averaged over all ranks; see `group_norms`.
        cost: Cost by the width of each group: multiply-adds, parameters or time.
        target_cost: Cost of one image to reach, in the unit of `cost`.
        max_chosen: Maximum number of channels to choose.
        min_channels: Minimum number of channels that each group keeps.
        round_to: Widths are rounded up to multiples of this number, or of one number for each group, and to those at
            which the cost falls, see `Cost.fast_widths`.
        scales: For each group what its norms are divided by in the order; None for the norms as they are.
    """
    full = np.array([len(group) for group in norms])
    multiples = [round_to] * len(full) if isinstance(round_to, int) else round_to
    both = zip(full.tolist(), multiples, strict=True)
    rounded = [rounded_widths(cost, group, width, multiple) for group, (width, multiple) in enumerate(both)]
    groups = np.repeat(np.arange(len(full)), full)[_ascending(norms, scales)]

    def choose(num_lowest: int) -> tuple[int, list[int]]:
        """Of the lowest channels, the number that `min_channels` lets be chosen; and the rounded widths that remain."""
        chosen = np.bincount(groups[:num_lowest], minlength=len(full)).clip(max=np.maximum(full - min_channels, 0))
        return int(chosen.sum()), [int(up[width]) for up, width in zip(rounded, full - chosen, strict=True)]

    def is_enough(num_lowest: int) -> bool:
        num_chosen, widths = choose(num_lowest)
        return num_chosen >= max_chosen or cost.total(widths) <= target_cost

    # Bisection finds the smallest number of lowest channels that is enough, since `is_enough` never turns from True
    # back to False: with more of them, no group has fewer chosen channels or a larger width. And a smaller width never
    # costs more: the coefficients of polynomials are not negative, and tables of times are made so (see `Latency`).
    num_chosen, widths = choose(bisect.bisect_left(range(len(groups)), True, key=is_enough))
    widths = [_below_the_dead(*of_group, min_channels) for of_group in zip(norms, widths, rounded, strict=True)]
    masks = [_mask(group, len(group) - width) for group, width in zip(norms, widths, strict=True)]
    return Selection(masks, num_chosen, cost.total([int(mask.sum()) for mask in masks]))


def rounded_widths(cost: Cost, group: int, full: int, round_to: int) -> np.ndarray:
    """Return for each width of a group the one that it is rounded up to, int [full + 1].

    Args:
        cost: Has the widths that are worth choosing.
        group: Index of the group.
        full: Its full width.
        round_to: Multiples of this number remain, and the full width.
    """
    allowed = [width for width in cost.fast_widths(group, full) if width % round_to == 0 or width == full]
    return np.array([0, *allowed])[np.searchsorted([0, *allowed], np.arange(full + 1))]


def _below_the_dead(norms: np.ndarray, width: int, rounded: np.ndarray, min_channels: int) -> int:
    """Return a width that leaves out the dead channels and is one that widths are rounded to, if there is one."""
    living = int((norms != 0).sum())
    if width <= living:
        return width
    lower = [int(possible) for possible in np.unique(rounded) if min_channels <= possible <= living]
    return max(lower, default=living)


def _ascending(norms: Sequence[np.ndarray], scales: Sequence[float] | None) -> np.ndarray:
    ranks = norms if scales is None else [group / scale for group, scale in zip(norms, scales, strict=True)]
    flat = np.concatenate([np.asarray(group) for group in ranks])
    assert np.isfinite(flat).all(), "row norms are finite in every step that is applied"
    return np.argsort(flat, kind="stable")


def _mask(norms: np.ndarray, num_masked: int) -> np.ndarray:
    num_dead = int((norms == 0).sum())
    mask = np.ones(len(norms), bool)
    # At least one channel remains, even if a state that the user made has only zero rows.
    mask[np.argsort(norms, kind="stable")[: min(max(num_masked, num_dead), len(norms) - 1)]] = 0
    return mask
