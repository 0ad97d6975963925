"""Finds dead channels: those that are masked and whose rows are zero."""

from collections.abc import Sequence

from resrep_dist.graph import Graph

import numpy as np
import tensorflow as tf
from tensorflow import keras


def dead_channels(
    model: keras.Model, graph: Graph, dead_row_norm: float = 0.0, norms: Sequence[np.ndarray] | None = None
) -> list[np.ndarray]:
    """Return which channels are dead: masked, with a row of zeros in all layers of their group.

    A merge deletes exactly these.

    Args:
        model: A model with the graph's compactors, at full width or shrunken.
        graph: Trace of the original model.
        dead_row_norm: Maximum norm of a dead row: 0 for the rule `radial`, a small number for the rule `paper`.
        norms: Row norms of each compactor, [D_out], in the order of `graph.layers`. None to compute them.

    Returns:
        For each group bool [width of the group in `model`].
    """
    of_layers = iter(norms if norms is not None else [_row_norms(model, layer.compactor) for layer in graph.layers])
    result = []
    for group in graph.groups:
        highest = np.max([in_parts(next(of_layers), group.num_parts).max(axis=0) for _ in group.layers], axis=0)
        mask = in_parts(model.get_layer(group.layers[0].compactor).mask.numpy(), group.num_parts)[0]
        result.append((mask == 0) & (highest <= dead_row_norm))
    return result


def num_masked_alive(
    model: keras.Model, graph: Graph, dead_row_norm: float = 0.0, norms: Sequence[np.ndarray] | None = None
) -> int:
    """Return the number of masked channels that are not dead, summed over the groups and their parts.

    Args:
        model: As in `dead_channels`.
        graph: As in `dead_channels`.
        dead_row_norm: As in `dead_channels`.
        norms: As in `dead_channels`.
    """
    dead = dead_channels(model, graph, dead_row_norm, norms)
    masks = [model.get_layer(group.layers[0].compactor).mask.numpy() for group in graph.groups]
    num_dead = sum(group.num_parts * int(channels.sum()) for group, channels in zip(graph.groups, dead, strict=True))
    return sum(int((mask == 0).sum()) for mask in masks) - num_dead


def kill_channels(model: keras.Model, graph: Graph, dead: Sequence[np.ndarray]) -> None:
    """Mask channels and set their rows to zero, which is how a run ends.

    Args:
        model: A model with the graph's compactors.
        graph: Trace of the original model.
        dead: For each group bool [width of the group in `model`], True for the channels.
    """
    for group, channels in zip(graph.groups, dead, strict=True):
        for layer in group.layers:
            compactor = model.get_layer(layer.compactor)
            compactor.mask.assign(tf.cast(np.tile(~channels, group.num_parts), compactor.mask.dtype))
            compactor.kernel.assign(compactor.kernel * compactor.mask)


def in_parts(values: np.ndarray, num_parts: int) -> np.ndarray:
    """Divide the values of a compactor's channels by the parts of its group (see `Group`).

    Args:
        values: One value per channel, [D_out].
        num_parts: Number of parts of the group.

    Returns:
        [num_parts, width of the group].
    """
    return np.reshape(values, [num_parts, -1])


def _row_norms(model: keras.Model, compactor: str) -> np.ndarray:
    return np.linalg.norm(model.get_layer(compactor).matrix(), axis=0)
