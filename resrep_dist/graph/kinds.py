"""How each kind of layer treats channels: all that the trace, the count and the merge know of it, in one class.

This file has the layers that pass channels on; `joins.py` those where tensors meet; `weighted.py` those that mix
channels.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from resrep_dist.graph.channels import ChannelSets, Segment, Segments, State

import numpy as np
import tensorflow as tf
from tensorflow import keras


class Narrowed(NamedTuple):
    """What a layer becomes when it keeps only some of its channels.

    Two things and no layer: the caller decides whether it builds one (a merge) or only reads the weights (an optimizer
    state that is cut in the same way).
    """

    config_changes: dict[str, Any]
    """Keys of the layer's configuration with their new values; empty if the configuration does not say the width."""
    weights: list[np.ndarray]
    """In the order of `layer.get_weights()`; empty if the layer has none."""


class UnitMacs(NamedTuple):
    """Multiply-adds of one call for one image."""

    constant: int = 0
    """At any width."""
    per_input: int = 0
    """For each input channel."""
    per_output: int = 0
    """For each output channel."""
    per_pair: int = 0
    """For each pair of an input and an output channel."""
    num_groups: int = 1
    """Only one pair in so many counts: an output sees the inputs of its group."""


class OpenSizeError(Exception):
    """Something that needs the size of an image was asked of a tensor that leaves it open."""


class Kind:
    """A kind of layer; channels are on the last axis."""

    known_to_kerassurgeon = False

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        """The output's channels; says in `channels` what must be kept, joined or consumed."""
        raise NotImplementedError

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Constants [C_out] that dead channels hold behind the layer, from those before it, [C_in] each.

        Right for dead channels only; what stands at the living ones means nothing.
        """
        raise NotImplementedError

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        """The layer at the kept channels of its first input and its output, bool [C_in] and [C_out]."""
        return Narrowed({}, layer.get_weights())

    def macs(self, node: Any) -> UnitMacs | None:
        """What a call costs at full width; None where that is not known."""
        return UnitMacs()


class Passing(Kind):
    """Every channel is treated alone, and a constant stays that constant: pooling, cropping, dropout."""

    def __init__(self, known_to_kerassurgeon: bool = True) -> None:
        self.known_to_kerassurgeon = known_to_kerassurgeon

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        return inputs[0]

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return inputs[0]


class ZeroPadding(Passing):
    """A border of zeros."""

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        nonzero = [segment for segment in inputs[0] if segment.state != State.ZERO]
        channels.keep(nonzero, f"a dead channel would be a constant, and {node.layer.name} pads it with zeros")
        return inputs[0]


class Elementwise(Kind):
    """A function of one number: activations, scaling."""

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
    """In inference an affine function of each channel."""

    known_to_kerassurgeon = True

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        return tuple(segment.at(max(segment.state, State.CONSTANT)) for segment in inputs[0])

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        scale, offset = batch_norm_as_affine(node.layer)
        return inputs[0] * scale + offset

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        return Narrowed({}, [weight[inputs] for weight in layer.get_weights()])


class Depthwise(Kind):
    """A convolution of every channel alone."""

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        layer = node.layer
        if pads(layer):
            nonzero = [segment for segment in inputs[0] if segment.state != State.ZERO]
            channels.keep(nonzero, f"a dead channel would be a constant, and {layer.name} pads it with zeros")
        least = State.CONSTANT if layer.use_bias else State.ZERO
        return tuple(segment.at(max(segment.state, least)) for segment in inputs[0])

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        layer = node.layer
        kernel = layer.depthwise_kernel.numpy()[..., 0].astype(np.float64)
        return inputs[0] * kernel.sum((0, 1)) + (layer.bias.numpy() if layer.use_bias else 0.0)

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        kernel, *bias = layer.get_weights()
        return Narrowed({}, [kernel[:, :, inputs], *(vector[inputs] for vector in bias)])

    def macs(self, node: Any) -> UnitMacs | None:
        taps = int(np.prod(node.layer.kernel_size)) * node.layer.depth_multiplier
        return UnitMacs(per_input=num_pixels(node.output_shapes) * taps)


class Flatten(Kind):
    """Pixels become channels: all channels of the first pixel, then of the second."""

    known_to_kerassurgeon = True

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        return inputs[0] * num_pixels(node.input_shapes)

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return np.tile(inputs[0], node.output_shapes[-1] // len(inputs[0]))


class Reshape(Kind):
    """A reshape that leaves the channels on the last axis, or flattens."""

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
    """A layer that nobody can take channels from: what it receives stays, and so does what it gives."""

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
    """Scale and offset of a batch norm in inference, float64 [D] each."""
    deviation = np.sqrt(layer.moving_variance.numpy().astype(np.float64) + layer.epsilon)
    scale = (layer.gamma.numpy() if layer.scale else 1.0) / deviation
    return scale, (layer.beta.numpy() if layer.center else 0.0) - layer.moving_mean.numpy() * scale


def pads(layer: keras.layers.Layer) -> bool:
    """True where a convolution sees zeros beyond the border."""
    return getattr(layer, "padding", "valid") == "same" and max(layer.kernel_size) > 1


def num_pixels(shape: Sequence[int | None]) -> int:
    """Pixels of a tensor [N, ..., C].

    Raises:
        OpenSizeError: where its size is open.
    """
    pixels = [size for size in shape[1:-1] if size is not None]
    if len(pixels) < len(shape) - 2:
        raise OpenSizeError
    return math.prod(pixels)


def total_width(segments: Sequence[Segment]) -> int:
    """Channels of a tensor."""
    return sum(segment.width for segment in segments)


def _width(node: Any) -> int:
    shape = tf.nest.flatten(node.outputs)[0].shape
    return int(shape[-1] or 0) if shape.rank else 0


def on_vectors(layer: keras.layers.Layer, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """What a layer makes of constants, [C] for each input."""
    vectors = [tf.constant(vector[np.newaxis], tf.float64) for vector in inputs]
    return np.asarray(layer(vectors if len(vectors) > 1 else vectors[0]), np.float64)[0]
