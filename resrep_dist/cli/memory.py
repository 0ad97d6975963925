"""An estimate of the memory that a training step takes on one rank."""

import dataclasses
import math

from resrep_dist.errors import ModelError

import numpy as np
import tensorflow as tf
from tensorflow import keras

# The derivative of these is computed from their output.
_KEEP_OUTPUT = (
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.Activation,
    keras.layers.Softmax,
)


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a step. What the device's libraries take as working space is not in it."""

    weights: int
    """Weights, statistics and masks."""
    gradients_and_momentum: int
    """One gradient and one velocity for each trained weight; with accumulation one more gradient."""
    activations: int
    """What the backward pass needs of the samples that are computed at once: the inputs of layers with weights and of
    max pooling, and the outputs of activations."""

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients_and_momentum + self.activations


def estimate_memory(model: keras.Model, rank_batch_size: int, num_micro_batches: int = 1) -> MemoryEstimate:
    """Add up what a step of `model`, compactors and precision included, has to hold.

    Args:
        rank_batch_size: samples of one rank in a step.
        num_micro_batches: gradient accumulation steps; the samples of one micro-batch are computed at once.

    Raises:
        ModelError: for a layer whose output size is open.
    """
    trained = sum(_variable_bytes(variable) for variable in model.trainable_variables)
    samples = math.ceil(rank_batch_size / num_micro_batches)
    return MemoryEstimate(
        weights=sum(_variable_bytes(variable) for variable in model.weights),
        gradients_and_momentum=trained * (2 if num_micro_batches == 1 else 3),
        activations=samples * sum(_kept_bytes(layer) for layer in model.layers),
    )


def _variable_bytes(variable: tf.Variable) -> int:
    return int(np.prod(variable.shape, dtype=np.int64)) * variable.dtype.size


def _kept_bytes(layer: keras.layers.Layer) -> int:
    """Bytes of a layer's outputs that are kept for one sample, over all its calls."""
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
