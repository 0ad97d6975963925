"""Layers that mix channels: they lose inputs when the channels before them are removed, and some lose outputs."""

import math
from collections.abc import Sequence
from typing import Any

from resrep_dist.graph.channels import ChannelSets, Producer, Segments, State
from resrep_dist.graph.kinds import Kind, Narrowed, UnitMacs, num_pixels, pads

import numpy as np
from tensorflow import keras


class Weighted(Kind):
    """A layer with a kernel [..., C_in, C_out] and optionally a bias.

    Args:
        excluded: Names of layers whose output channels the configuration keeps.
    """

    width_key = "filters"
    """Key of the layer's configuration with the number of output channels."""
    own_reason: str | None = None
    """Why the layer's own output channels are kept; None if they may be removed."""
    num_groups = 1
    """Number of groups of a grouped convolution."""

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
        """Return False if the outputs are pruned only together with those of a convolution.

        Args:
            node: A call of the layer.
        """
        return True

    def needs_zeros(self, layer: keras.layers.Layer) -> bool:
        """Return True if a constant other than zero in a dead input channel does not give a constant output.

        Args:
            layer: The layer.
        """
        return pads(layer)

    def kernels(self, layer: keras.layers.Layer) -> list[np.ndarray]:
        """Return the weights without the bias.

        Args:
            layer: The layer.

        Returns:
            float64 arrays. The first has the input channels on its axis -2, and the last has the output channels on its
            axis -1.
        """
        weights = layer.get_weights()
        return [np.asarray(weight, np.float64) for weight in (weights[:-1] if layer.use_bias else weights)]

    def stored(self, kernels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return arrays in the form in which the layer holds them.

        Args:
            kernels: Arrays in the form of `kernels`.
        """
        return list(kernels)

    def num_outputs(self, kernels: Sequence[np.ndarray]) -> int:
        """Return the number of output channels of a layer.

        Args:
            kernels: What `kernels` returned for the layer.
        """
        return kernels[-1].shape[-1]

    def response(self, kernels: Sequence[np.ndarray], constants: np.ndarray) -> np.ndarray:
        """Return what constant inputs add to each output of a layer.

        Args:
            kernels: What `kernels` returned for the layer.
            constants: The value of each input channel, the same at all pixels, [C_in].

        Returns:
            float64 [C_out], without the bias.
        """
        kernel = kernels[0]
        return constants @ kernel.reshape(-1, *kernel.shape[-2:]).sum(0)

    def rows(self, inputs: np.ndarray) -> np.ndarray:
        """Return which rows of the first kernel, on its axis -2, belong to input channels.

        Args:
            inputs: bool [C_in], True for the channels.

        Returns:
            bool [number of rows], True for their rows.
        """
        return inputs

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        kernels = [np.asarray(weight) for weight in self.kernels(layer)]
        kernels[0] = kernels[0][..., self.rows(inputs), :]
        kernels[-1] = kernels[-1][..., outputs]
        bias = [layer.bias.numpy()[outputs]] if layer.use_bias else []
        return Narrowed({self.width_key: int(outputs.sum())}, [*self.stored(kernels), *bias])


class Convolution(Weighted):
    """Conv2D."""

    known_to_kerassurgeon = True

    def macs(self, node: Any) -> UnitMacs | None:
        return UnitMacs(per_pair=num_pixels(node.output_shapes) * math.prod(node.layer.kernel_size))


class OtherConvolution(Convolution):
    """Conv1D and Conv3D."""

    known_to_kerassurgeon = False


class Grouped(Convolution):
    """Conv2D with groups; every group loses the same of its channels.

    The kernel is [height, width, C_in / groups, C_out].

    Args:
        excluded: Names of layers whose output channels the configuration keeps.
        num_groups: Number of groups.
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
    """A dense layer; on images it is a 1x1 convolution.

    Args:
        excluded: Names of layers whose output channels the configuration keeps.
        on_vectors: True if its inputs are [N, C], False if they are images.
    """

    width_key = "units"

    def __init__(self, excluded: Sequence[str] = (), on_vectors: bool = True) -> None:
        super().__init__(excluded)
        self.known_to_kerassurgeon = on_vectors

    def is_convolution(self, node: Any) -> bool:
        return len(node.output_shapes) > 2

    def needs_zeros(self, layer: keras.layers.Layer) -> bool:
        return False

    def macs(self, node: Any) -> UnitMacs | None:
        return UnitMacs(per_pair=num_pixels(node.output_shapes))


class Separable(Weighted):
    """SeparableConv1D and 2D: a depthwise convolution and a 1x1 convolution in one layer."""

    def response(self, kernels: Sequence[np.ndarray], constants: np.ndarray) -> np.ndarray:
        depthwise, pointwise = kernels
        taps = depthwise.reshape(-1, len(constants)).sum(0)
        return (constants * taps) @ pointwise.reshape(len(constants), -1)

    def narrow(self, layer: keras.layers.Layer, inputs: np.ndarray, outputs: np.ndarray) -> Narrowed:
        depthwise, pointwise, *bias = layer.get_weights()
        weights = [depthwise[..., inputs, :], pointwise[..., inputs, :][..., outputs], *(b[outputs] for b in bias)]
        return Narrowed({"filters": int(outputs.sum())}, weights)

    def macs(self, node: Any) -> UnitMacs | None:
        positions = num_pixels(node.output_shapes)
        return UnitMacs(per_input=positions * math.prod(node.layer.kernel_size), per_pair=positions)


class Transposed(Weighted):
    """Conv1DTranspose, 2D and 3D, whose kernel is [..., C_out, C_in]."""

    def needs_zeros(self, layer: keras.layers.Layer) -> bool:
        return True

    def kernels(self, layer: keras.layers.Layer) -> list[np.ndarray]:
        return [np.swapaxes(kernel, -1, -2) for kernel in super().kernels(layer)]

    def stored(self, kernels: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.swapaxes(kernel, -1, -2) for kernel in kernels]

    def macs(self, node: Any) -> UnitMacs | None:
        return UnitMacs(per_pair=num_pixels(node.input_shapes) * math.prod(node.layer.kernel_size))


class Fixed(Kind):
    """A convolution that keeps its inputs and outputs, at a known cost.

    Args:
        description: What the layer is, for the reason that the user reads about the channels before it.
        own_reason: Why its own channels are kept.
    """

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
