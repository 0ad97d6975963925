"""How each kind of layer treats channels: one class with all that trace, multiply-adds and merge know of it.

This module has the layers that pass channels on, `joins.py` those with several inputs, and `weighted.py` those that
mix channels.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from resrep_dist.graph.channels import ChannelSets, Segment, Segments, State

import numpy as np
import tensorflow as tf
from tensorflow import keras


class Narrowed(NamedTuple):
    """A layer that keeps only some of its channels, as data: what changes in its configuration, and its weights.

    A kind of layer knows which axes of which weights its channels are on, but it does not create the smaller layer.
    `merging/surgery.py` does that when it rebuilds the model, or uses the weights alone: the velocities of an
    optimizer have the shapes of the weights and are narrowed by the same rules.
    """

    config_changes: dict[str, Any]
    """New values of keys of the layer's configuration; empty if its configuration does not depend on the channels."""
    weights: list[np.ndarray]
    """The remaining weights in the order of `layer.get_weights()`; empty if the layer has none."""


class UnitMacs(NamedTuple):
    """Multiply-adds of one call for one image."""

    constant: int = 0
    """Multiply-adds that do not depend on the number of channels."""
    per_input: int = 0
    """Multiply-adds per input channel."""
    per_output: int = 0
    """Multiply-adds per output channel."""
    per_pair: int = 0
    """Multiply-adds per pair of an input and an output channel."""
    num_groups: int = 1
    """Number of groups of a grouped convolution: one in `num_groups` pairs is connected."""


class OpenSizeError(Exception):
    """The height and width of a tensor are not fixed, but are needed."""


class Kind:
    """A kind of layer; channels are on the last axis.

    A node is Keras' record of one call of a layer, with its input and output tensors.
    """

    known_to_kerassurgeon = False
    """True if kerassurgeon can delete channels of such a layer."""

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        """Return the channels of the output, and record in `channels` which sets are kept, joined or consumed.

        Args:
            node: The call.
            inputs: Channels of each input.
            channels: The sets of channels, changed in place.
        """
        raise NotImplementedError

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return the constants that dead channels hold in the output of a call in inference.

        Args:
            node: The call.
            inputs: For each input the constants of its channels, [C_in].

        Returns:
            float64 [C_out]. Only the values of dead channels have a meaning.
        """
        raise NotImplementedError

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        """Return the configuration changes and the weights of the layer without the channels that are removed.

        Args:
            layer: The layer at its present width.
            inputs: bool [C_in], True for the channels of the first input that are kept.
            outputs: bool [C_out], True for the channels of the output that are kept.

        Returns:
            No change of the configuration and all weights by default.
        """
        return Narrowed({}, layer.get_weights())

    def macs(self, node: Any) -> UnitMacs | None:
        """Return the multiply-adds of a call for one image.

        Args:
            node: The call.

        Returns:
            The multiply-adds; none by default. None if they are not known.

        Raises:
            OpenSizeError: If the layer has weights and the size of its images is not fixed.
        """
        return UnitMacs()


class Passing(Kind):
    """Layers that treat every channel alone and leave a constant unchanged: pooling, cropping, dropout.

    Args:
        known_to_kerassurgeon: True if kerassurgeon can delete channels of such a layer.
    """

    def __init__(self, known_to_kerassurgeon: bool = True) -> None:
        self.known_to_kerassurgeon = known_to_kerassurgeon

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        return inputs[0]

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return inputs[0]


class ZeroPadding(Passing):
    """ZeroPadding1D, 2D and 3D, which add a border of zeros."""

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        nonzero = [segment for segment in inputs[0] if segment.state != State.ZERO]
        channels.keep(nonzero, f"a dead channel would be a constant, and {node.layer.name} pads it with zeros")
        return inputs[0]


class Elementwise(Kind):
    """Functions of one number: activations, scaling.

    Args:
        known_to_kerassurgeon: True if kerassurgeon can delete channels of such a layer.
    """

    def __init__(self, known_to_kerassurgeon: bool = True) -> None:
        self.known_to_kerassurgeon = known_to_kerassurgeon

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        probe = np.array([[[[-1.5, 0.0, 0.5, 2.0]]]], np.float32)
        together = np.asarray(node.layer(probe), np.float32)
        alone = [np.asarray(node.layer(probe[..., i : i + 1]), np.float32) for i in range(4)]
        if not np.array_equal(together, np.concatenate(alone, -1)):
            channels.keep(inputs[0], f"the activation {node.layer.name} mixes its channels")
        keeps_zero = not np.any(alone[1])
        is_zero = [segment.state == State.ZERO and keeps_zero for segment in inputs[0]]
        return tuple(
            segment if zero else segment.at(max(segment.state, State.CONSTANT))
            for segment, zero in zip(inputs[0], is_zero, strict=True)
        )

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return on_vectors(node.layer, inputs)


class BatchNorm(Kind):
    """Batch norm, which is an affine function of each channel in inference."""

    known_to_kerassurgeon = True

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        return tuple(segment.at(max(segment.state, State.CONSTANT)) for segment in inputs[0])

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        scale, offset = batch_norm_as_affine(node.layer)
        return inputs[0] * scale + offset

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        return Narrowed({}, [weight[inputs] for weight in layer.get_weights()])


class Flatten(Kind):
    """Flatten: all channels of the first pixel, then those of the second, and so on."""

    known_to_kerassurgeon = True

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        return inputs[0] * num_pixels(node.input_shapes)

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return np.tile(inputs[0], node.output_shapes[-1] // len(inputs[0]))


class Reshape(Kind):
    """A reshape that leaves the channels on the last axis, or that flattens."""

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        before, after = node.input_shapes[-1], node.output_shapes[-1]
        if len(node.output_shapes) == 2 and after != before:
            return inputs[0] * (after // before)
        return inputs[0]

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return np.tile(inputs[0], node.output_shapes[-1] // len(inputs[0]))

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        return Narrowed({"target_shape": (*layer.output_shape[1:-1], int(outputs.sum()))}, [])


class Opaque(Kind):
    """A layer of unknown effect: all channels of its inputs and outputs are kept.

    Args:
        description: What the layer is, for the reason that the user reads.
        is_free: True if the layer has no multiply-adds that count; otherwise they are not known.
    """

    def __init__(self, description: str, is_free: bool) -> None:
        self.description, self._is_free = description, is_free

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        for segments in inputs:
            channels.keep(segments, f"its channels reach {node.layer.name}, {self.description}")
        return channels.fixed(_width(node))

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return np.zeros(_width(node))

    def macs(self, node: Any) -> UnitMacs | None:
        return UnitMacs() if self._is_free else None


def batch_norm_as_affine(layer: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset of a batch norm in inference, float64 [D] each."""
    deviation = np.sqrt(layer.moving_variance.numpy().astype(np.float64) + layer.epsilon)
    scale = (layer.gamma.numpy() if layer.scale else 1.0) / deviation
    return scale, (layer.beta.numpy() if layer.center else 0.0) - layer.moving_mean.numpy() * scale


def pads(layer: keras.layers.Layer) -> bool:
    """Return True if a convolution pads its input with zeros."""
    return getattr(layer, "padding", "valid") in ("same", "causal") and max(layer.kernel_size) > 1


def num_pixels(shape: Sequence[int | None]) -> int:
    """Return the number of pixels of a tensor of the shape [N, ..., C].

    Raises:
        OpenSizeError: If the number is not fixed.
    """
    pixels = [size for size in shape[1:-1] if size is not None]
    if len(pixels) < len(shape) - 2:
        raise OpenSizeError
    return math.prod(pixels)


def total_width(segments: Sequence[Segment]) -> int:
    """Return the number of channels of a tensor."""
    return sum(segment.width for segment in segments)


def _width(node: Any) -> int:
    shape = tf.nest.flatten(node.outputs)[0].shape
    return int(shape[-1] or 0) if shape.rank else 0


def on_vectors(layer: keras.layers.Layer, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Apply a layer to constants.

    Args:
        layer: The layer, which must treat every pixel alone.
        inputs: For each input the constants of its channels, [C].

    Returns:
        float64 [C].
    """
    vectors = [tf.constant(vector[np.newaxis], tf.float64) for vector in inputs]
    return np.asarray(layer(vectors if len(vectors) > 1 else vectors[0]), np.float64)[0]
