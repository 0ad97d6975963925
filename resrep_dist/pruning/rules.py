"""The maths of ResRep (Ding et al., ICCV 2021) on arrays. No Keras, no Horovod, no files.

Compactor kernels have shape [..., D_in, D_out]: the paper's row j of Q is the slice [..., :, j].
"""

import bisect
import dataclasses
from collections.abc import Sequence

from resrep_dist.graph.macs import MultiplyAdds

import numpy as np
import tensorflow as tf


def row_norms(kernel: tf.Tensor) -> tf.Tensor:
    """Euclidean norm of every row: [..., D_in, D_out] -> [..., D_out] (section 3.3)."""
    return tf.norm(kernel, axis=-2)


def group_norms(norms: Sequence[np.ndarray]) -> np.ndarray:
    """Norm of every channel of a group: root of the mean square of the row norms of its layers, [D] each.

    The mean makes groups of many and of few layers comparable, so that one order sorts them all. It is zero where
    all rows are zero, and the row norm itself for a group of one layer.
    """
    if len(norms) == 1:
        return norms[0]
    return np.sqrt(np.mean(np.square(norms), axis=0))


def reset_gradient(
    kernel: tf.Tensor, gradient: tf.Tensor, mask: tf.Tensor, norms: tf.Tensor, lasso_strength: float
) -> tf.Tensor:
    """G_j = m_j g_j + lambda Q_j / ||Q_j|| (gradient resetting, section 3.3), and 0 for the penalty of a zero row.

    Args:
        kernel: Q, [..., D_in, D_out].
        gradient: the objective's gradient averaged over all ranks, same shape.
        mask: m, 1 = trained by the objective, 0 = left to the penalty, [..., D_out].
        norms: row norms averaged over all ranks, [..., D_out].
    """
    direction = tf.math.divide_no_nan(kernel, norms[..., tf.newaxis, :])
    return mask[..., tf.newaxis, :] * gradient + tf.constant(lasso_strength, kernel.dtype) * direction


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
) -> tuple[tf.Tensor, tf.Tensor]:
    """One step of v = momentum v + G; Q -= lr v. Shapes as in `reset_gradient`; returns (Q, v).

    With `radial`, a masked row keeps only the part of its velocity that points straight to zero, and stops
    at exactly zero, velocity too, when a step would cross it. So it dies in a straight line, in a number of
    steps that its norm bounds; by the plain rule the speed that the objective gave it sideways makes it
    circle around zero, and the speed it gave it outwards makes it grow first.
    """
    reset = reset_gradient(kernel, gradient, mask, norms, lasso_strength)
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
    """The last step at which a row may be masked and still be carried to zero by the penalty alone.

    Args:
        rates: learning rate of every step, [N].
        norm: of the row when it is masked, at rest.

    Returns:
        A number of steps from 0 to N; 0 as well where even N steps are too few.
    """

    def reaches_zero(first: int) -> bool:
        num_steps = np.arange(1, len(rates) - first + 1)
        speeds = lasso_strength * (1.0 - momentum**num_steps) / (1.0 - momentum)
        return float(rates[first:] @ speeds) >= norm

    low, high = 0, len(rates)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if reaches_zero(middle) else (low, middle - 1)
    return low


@dataclasses.dataclass(frozen=True)
class Selection:
    """The masks chosen at one update."""

    masks: list[np.ndarray]
    """For each group, bool [D]: True = trained, False = masked."""
    num_chosen: int
    """Channels chosen before widths were rounded up; the next update may choose k more."""
    macs: int
    """Multiply-adds left at the unmasked widths."""

    @property
    def widths(self) -> list[int]:
        """Unmasked channels of each group."""
        return [int(mask.sum()) for mask in self.masks]


def select_masks(
    norms: Sequence[np.ndarray],
    macs: MultiplyAdds,
    *,
    target_macs: float,
    max_chosen: int,
    min_channels: int = 1,
    round_to: int = 1,
) -> Selection:
    """Choose all masks anew from the norms of channels (section 3.4).

    All channels of all groups (mostly single layers) are sorted by norm, ties by group and channel. From the
    lowest up they are masked until the multiply-adds left are at most `target_macs` or `max_chosen` channels are
    chosen. A group keeps `min_channels`. With `round_to`, widths count rounded up, and the channels of a group
    that its rounding keeps are unmasked again. What is dead (norm 0) stays masked, also where the target is met
    without it: zeros all sort as equal, so the channels that lead to the target are others from one time to the next.

    Args:
        norms: norms of each group's channels, [D_i], averaged over all ranks; see `group_norms`.
        macs: multiply-adds by width of each group.
        target_macs: multiply-adds to reach, of one image.
        max_chosen: how many channels may be chosen at most.
    """
    full = np.array([len(group) for group in norms])
    groups = np.repeat(np.arange(len(full)), full)[_ascending(norms)]

    def choose(num_lowest: int) -> tuple[int, list[int]]:
        """How many of the lowest channels are chosen, the others being the least of their groups, and the widths."""
        chosen = np.bincount(groups[:num_lowest], minlength=len(full)).clip(max=np.maximum(full - min_channels, 0))
        rounded = np.minimum(full, -(-(full - chosen) // round_to) * round_to)
        return int(chosen.sum()), rounded.tolist()

    def is_enough(num_lowest: int) -> bool:
        num_chosen, widths = choose(num_lowest)
        return num_chosen >= max_chosen or macs.total(widths) <= target_macs

    # More of the lowest channels never leave more multiply-adds, so the fewest that are enough can be bisected.
    num_chosen, widths = choose(bisect.bisect_left(range(len(groups)), True, key=is_enough))
    masks = [_mask(group, len(group) - width) for group, width in zip(norms, widths, strict=True)]
    return Selection(masks, num_chosen, macs.total([int(mask.sum()) for mask in masks]))


def _ascending(norms: Sequence[np.ndarray]) -> np.ndarray:
    flat = np.concatenate([np.asarray(group) for group in norms])
    assert np.isfinite(flat).all(), "row norms are finite in every step that is applied"
    return np.argsort(flat, kind="stable")


def _mask(norms: np.ndarray, num_masked: int) -> np.ndarray:
    num_dead = int((norms == 0).sum())
    mask = np.ones(len(norms), bool)
    # At least one channel is left even where a user's own state holds nothing but zero rows.
    mask[np.argsort(norms, kind="stable")[: min(max(num_masked, num_dead), len(norms) - 1)]] = 0
    return mask
