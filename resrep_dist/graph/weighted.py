"""Layers that mix channels: they lose inputs with the channels before them, and some lose outputs."""

import math
from collections.abc import Sequence
from typing import Any

from resrep_dist.graph.channels import ChannelSets, Producer, Segments, State
from resrep_dist.graph.kinds import Kind, Narrowed, UnitMacs, num_pixels, pads

import numpy as np
from tensorflow import keras


class Weighted(Kind):
    """A layer with a kernel [..., C_in, C_out], perhaps with a bias."""

    width_key = "filters"
    """The configuration's name of the number of output channels."""
    own_reason: str | None = None
    """Why the layer's own output channels stay; None where they may go."""
    num_groups = 1
    """Of a grouped convolution."""

    def __init__(self, excluded: Sequence[str] = ()) -> None:
        self._excluded = frozenset(excluded)

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        layer, segments = node.layer, inputs[0]
        varying = [segment for segment in segments if segment.state == State.VARYING]
        channels.keep(varying, f"{layer.name} would still receive values from its dead channels")
        if self.needs_zeros(layer):
            nonzero = [segment for segment in segments if segment.state == State.CONSTANT]
            channels.keep(nonzero, f"a dead channel would be a constant, which {layer.name} cannot hold in its bias")
        channels.consume(segments, layer.name)
        reason = self.own_reason
        if layer.name in self._excluded:
            reason = "it is excluded by the configuration"
        elif not layer.trainable:
            reason = reason or "it is frozen"
        producer = Producer(layer.name, self.is_convolution(node), self.num_groups)
        return channels.produced(producer, node.output_shapes[-1], reason)

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return np.zeros(node.output_shapes[-1])

    def is_convolution(self, node: Any) -> bool:
        """False where the outputs go only along with those of a convolution."""
        return True

    def needs_zeros(self, layer: keras.layers.Layer) -> bool:
        """True where a constant in a dead input channel gives something else than a constant."""
        return pads(layer)

    def kernels(self, layer: keras.layers.Layer) -> list[np.ndarray]:
        """The weights without the bias, float64; the first has the input channels on its axis -2, the last
        the output channels on its axis -1."""
        weights = layer.get_weights()
        return [np.asarray(weight, np.float64) for weight in (weights[:-1] if layer.use_bias else weights)]

    def num_outputs(self, kernels: Sequence[np.ndarray]) -> int:
        """Output channels."""
        return kernels[-1].shape[-1]

    def response(self, kernels: Sequence[np.ndarray], constants: np.ndarray) -> np.ndarray:
        """What constant inputs [C_in] add to each output, [C_out]."""
        kernel = kernels[0]
        return constants @ kernel.reshape(-1, *kernel.shape[-2:]).sum(0)

    def rows(self, inputs: np.ndarray) -> np.ndarray:
        """Bool: the rows of the first kernel, on its axis -2, of a choice of input channels, bool [C_in]."""
        return inputs

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        kernels = [np.asarray(weight) for weight in self.kernels(layer)]
        kernels[0] = kernels[0][..., self.rows(inputs), :]
        kernels[-1] = kernels[-1][..., outputs]
        bias = [layer.bias.numpy()[outputs]] if layer.use_bias else []
        return Narrowed({self.width_key: int(outputs.sum())}, [*kernels, *bias])


class Convolution(Weighted):
    """Conv2D."""

    known_to_kerassurgeon = True

    def macs(self, node: Any) -> UnitMacs | None:
        return UnitMacs(per_pair=num_pixels(node.output_shapes) * math.prod(node.layer.kernel_size))


class Grouped(Convolution):
    """Conv2D whose channels are divided into groups; every group loses the same ones of its channels.

    The kernel is [height, width, C_in / groups, C_out].
    """

    known_to_kerassurgeon = False

    def __init__(self, excluded: Sequence[str], num_groups: int) -> None:
        super().__init__(excluded)
        self.num_groups = num_groups

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        if not channels.has_equal_parts(inputs[0], self.num_groups):
            channels.request_parts(inputs[0], self.num_groups)
            description = f"a convolution of {self.num_groups} groups that differ in them"
            channels.keep(inputs[0], f"its channels reach {node.layer.name}, {description}")
        return super().trace(node, inputs, channels)

    def rows(self, inputs: np.ndarray) -> np.ndarray:
        return inputs[: len(inputs) // self.num_groups]

    def response(self, kernels: Sequence[np.ndarray], constants: np.ndarray) -> np.ndarray:
        kernel = kernels[0].sum((0, 1))
        by_group = kernel.reshape(len(kernel), self.num_groups, -1)
        return np.einsum("gi,igo->go", constants.reshape(self.num_groups, -1), by_group).ravel()

    def macs(self, node: Any) -> UnitMacs | None:
        plain = super().macs(node)
        return plain._replace(num_groups=self.num_groups) if plain else None


class Dense(Weighted):
    """A dense layer; on an image it is a 1x1 convolution."""

    width_key = "units"

    def __init__(self, excluded: Sequence[str] = (), on_vectors: bool = True) -> None:
        super().__init__(excluded)
        self.known_to_kerassurgeon = on_vectors

    def is_convolution(self, node: Any) -> bool:
        return len(node.output_shapes) == 4

    def needs_zeros(self, layer: keras.layers.Layer) -> bool:
        return False

    def macs(self, node: Any) -> UnitMacs | None:
        return UnitMacs(per_pair=num_pixels(node.output_shapes))


class Separable(Weighted):
    """SeparableConv2D: a depthwise convolution and a 1x1 convolution in one layer."""

    def response(self, kernels: Sequence[np.ndarray], constants: np.ndarray) -> np.ndarray:
        depthwise, pointwise = kernels
        return (constants * depthwise.sum((0, 1))[:, 0]) @ pointwise[0, 0]

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        depthwise, pointwise, *bias = layer.get_weights()
        weights = [depthwise[:, :, inputs], pointwise[:, :, inputs][..., outputs], *(b[outputs] for b in bias)]
        return Narrowed({"filters": int(outputs.sum())}, weights)

    def macs(self, node: Any) -> UnitMacs | None:
        positions = num_pixels(node.output_shapes)
        return UnitMacs(per_input=positions * math.prod(node.layer.kernel_size), per_pair=positions)


class Transposed(Weighted):
    """Conv2DTranspose: loses inputs, keeps its outputs."""

    own_reason = "it is a transposed convolution"

    def needs_zeros(self, layer: keras.layers.Layer) -> bool:
        return True

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        kernel, *bias = layer.get_weights()
        return Narrowed({}, [kernel[..., inputs], *bias])

    def macs(self, node: Any) -> UnitMacs | None:
        return UnitMacs(per_pair=num_pixels(node.input_shapes) * math.prod(node.layer.kernel_size))


class Fixed(Kind):
    """A convolution that keeps its inputs and outputs, at a known cost."""

    def __init__(self, description: str, own_reason: str) -> None:
        self._description, self._own_reason = description, own_reason

    def trace(self, node: Any, inputs: Sequence[Segments], channels: ChannelSets) -> Segments:
        channels.keep(inputs[0], f"its channels reach {node.layer.name}, {self._description}")
        return channels.produced(Producer(node.layer.name, True), node.output_shapes[-1] or 0, self._own_reason)

    def constant(self, node: Any, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return np.zeros(node.output_shapes[-1] or 0)

    def macs(self, node: Any) -> UnitMacs | None:
        is_first = node.layer.data_format == "channels_first"
        shape = node.output_shapes[2:] if is_first else node.output_shapes[1:-1]
        return UnitMacs(constant=num_pixels((None, *shape, None)) * math.prod(node.layer.kernel.shape))
