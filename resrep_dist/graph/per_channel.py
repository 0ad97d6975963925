"""Layers with one number for each channel that does not depend on the others."""

from collections.abc import Sequence
from typing import Any

from resrep_dist.graph.channels import ChannelSets, Segments, State
from resrep_dist.graph.kinds import Kind, Narrowed

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
