"""Layers that treat every channel alone, by weights or numbers of its own."""

from collections.abc import Sequence
from typing import Any

from resrep_dist.graph.channels import ChannelSets, Segments, State
from resrep_dist.graph.kinds import Kind, Narrowed, UnitMacs, num_pixels, pads

import numpy as np
from tensorflow import keras


class PerChannel(Kind):
    """Rescaling with a scale or an offset for each channel."""

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        return tuple(segment.at(max(segment.state, State.CONSTANT)) for segment in inputs[0])

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return inputs[0] * np.asarray(node.layer.scale, np.float64) + np.asarray(node.layer.offset, np.float64)

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        values = {"scale": layer.scale, "offset": layer.offset}
        return Narrowed({name: np.asarray(v)[inputs].tolist() for name, v in values.items() if np.ndim(v)}, [])


class Scaled(Kind):
    """LayerScale: a trained factor for each channel."""

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        return inputs[0]

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return inputs[0] * node.layer.gamma.numpy().astype(np.float64)

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        return Narrowed({"projection_dim": int(inputs.sum())}, [layer.gamma.numpy()[inputs]])


class Sloped(Kind):
    """PReLU: a trained slope for each channel, or for each channel of each pixel.

    With the channels among its `shared_axes` all have the same one.
    """

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        # A constant stays one only where all pixels have the same slope.
        is_shared = max(node.layer.alpha.shape[:-1], default=1) == 1
        return tuple(s if s.state == State.ZERO or is_shared else s.at(State.VARYING) for s in inputs[0])

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        alpha = node.layer.alpha.numpy().astype(np.float64)
        slopes = alpha.reshape(-1, alpha.shape[-1])[0]
        return np.where(inputs[0] > 0, inputs[0], slopes * inputs[0])

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        alpha = layer.alpha.numpy()
        # A single channel has a single slope too, and does not go.
        return Narrowed({}, [alpha if alpha.shape[-1] == 1 else alpha[..., inputs]])


class Depthwise(Kind):
    """DepthwiseConv1D and 2D: a convolution of every channel alone, with a kernel [..., C, 1]."""

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
        taps = kernel.reshape(-1, kernel.shape[-1]).sum(0)
        return inputs[0] * taps + (layer.bias.numpy() if layer.use_bias else 0.0)

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        kernel, *bias = layer.get_weights()
        return Narrowed({}, [kernel[..., inputs, :], *(vector[inputs] for vector in bias)])

    def macs(self, node: Any) -> UnitMacs | None:
        taps = int(np.prod(node.layer.kernel_size)) * node.layer.depth_multiplier
        return UnitMacs(per_input=num_pixels(node.output_shapes) * taps)


class DepthwiseByGroups(Depthwise):
    """A Conv2D of as many groups as channels: a depthwise convolution, as in ConvNeXt.

    The kernel is [height, width, 1, C].
    """

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        layer = node.layer
        kernel = layer.kernel.numpy()[:, :, 0].astype(np.float64)
        return inputs[0] * kernel.sum((0, 1)) + (layer.bias.numpy() if layer.use_bias else 0.0)

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        width = int(inputs.sum())
        return Narrowed({"filters": width, "groups": width}, [weight[..., inputs] for weight in layer.get_weights()])

    def macs(self, node: Any) -> UnitMacs:
        return UnitMacs(per_input=num_pixels(node.output_shapes) * int(np.prod(node.layer.kernel_size)))
