"""Estimates the memory that a training step takes on one rank."""

import dataclasses
import math

from resrep_dist.errors import ModelError

import numpy as np
import tensorflow as tf
from tensorflow import keras

# Layers whose derivative is computed from their output.
_KEEP_OUTPUT = (
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.Activation,
    keras.layers.Softmax,
)


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a step, without the workspace of the device's libraries."""

    weights: int
    """Bytes of weights, statistics and masks, and of their average if one is kept."""
    gradients_and_momentum: int
    """Bytes of a gradient and a velocity per trained weight, and of a second gradient with gradient accumulation."""
    activations: int
    """Bytes kept for the backward pass of one micro-batch: inputs of layers with weights and of max pooling, and
    outputs of activations."""

    @property
    def total(self) -> int:
        """Bytes of all of these."""
        return self.weights + self.gradients_and_momentum + self.activations


def estimate_memory(
    model: keras.Model, rank_batch_size: int, num_micro_batches: int = 1, has_weight_average: bool = False
) -> MemoryEstimate:
    """Estimate the memory of a training step.

    Args:
        model: The model that is trained, with its compactors and its precision.
        rank_batch_size: Number of samples of one rank per step.
        num_micro_batches: Number of gradient accumulation steps, in each of which a part of the samples is computed.
        has_weight_average: True if an average of the weights is kept beside them.

    Raises:
        ModelError: If a layer's output size is not fixed.
    """
    trained = sum(_variable_bytes(variable) for variable in model.trainable_variables)
    samples = math.ceil(rank_batch_size / num_micro_batches)
    return MemoryEstimate(
        weights=sum(_variable_bytes(variable) for variable in model.weights) * (2 if has_weight_average else 1),
        gradients_and_momentum=trained * (2 if num_micro_batches == 1 else 3),
        activations=samples * sum(_kept_bytes(layer) for layer in model.layers),
    )


def _variable_bytes(variable: tf.Variable) -> int:
    return int(np.prod(variable.shape, dtype=np.int64)) * variable.dtype.size


def _kept_bytes(layer: keras.layers.Layer) -> int:
    """Return the bytes of a layer's outputs that are kept for one sample, for all its calls."""
    followers = [node.layer for node in layer.outbound_nodes]
    is_needed = any(follower.weights or isinstance(follower, keras.layers.MaxPooling2D) for follower in followers)
    if not is_needed and not isinstance(layer, _KEEP_OUTPUT):
        return 0
    total = 0
    for index in range(len(layer.inbound_nodes)):
        for tensor in tf.nest.flatten(layer.get_output_at(index)):
            num_elements = tensor.shape[1:].num_elements()
            if num_elements is None:
                raise ModelError(
                    f"layer {layer.name}: its output size is open; build the model with a fixed input size"
                )
            total += num_elements * tf.as_dtype(layer.compute_dtype).size
    return total
