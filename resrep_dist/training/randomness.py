"""Random numbers of layers, such as the masks of Dropout, as a function of seed, sample and layer.

Keras' layers draw from generators whose state no checkpoint has, and which are the same on all ranks. Here each sample
has its own numbers, which follow from the seed, its position in training (see `data/order.py`), the layer, and the
number of the draw in the layer. So a resumed run draws what an undisturbed one does, two ranks draw different masks,
and together those that one rank would draw.
"""

import contextlib
import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from resrep_dist.data.hashing import mix, right_shift
from resrep_dist.data.order import rank_part
from resrep_dist.distributed.cluster import Cluster

import numpy as np
import tensorflow as tf
from tensorflow import keras

_layers = keras.layers
_RandomLayer = keras.__internal__.layers.BaseRandomLayer
_RandomGenerator: Any = type(_layers.Dropout(0.5)._random_generator)
# They draw for a whole batch at once, with the samples on the first axis.
_OF_BATCHES = (
    _layers.Dropout, _layers.AlphaDropout, _layers.GaussianDropout, _layers.GaussianNoise, _layers.SpatialDropout1D,
    _layers.SpatialDropout2D, _layers.SpatialDropout3D, _layers.RNN, _layers.LSTMCell, _layers.GRUCell,
    _layers.SimpleRNNCell,
)  # fmt: skip

# Added to the position of a sample for each further row that is made of it; there are fewer positions.
_ROW = 1 << 52

# Operations whose numbers follow from a state that no checkpoint has.
_WITH_STATE = {
    "RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "ParameterizedTruncatedNormal",
    "RandomGamma", "RandomPoissonV2", "Multinomial", "RandomShuffle", "RngReadAndSkip",
}  # fmt: skip
_log = logging.getLogger(__name__)


class LayerRandomness:
    """Gives the random layers of a model numbers that follow from the position of each sample.

    Only within `at`: elsewhere the layers draw as Keras does.

    Args:
        model: The model, whose random layers are changed in place.
        seed: Seed of the phase.
        global_batch_size: Number of samples of all ranks per step.
        cluster: The ranks.
    """

    def __init__(self, model: keras.Model, seed: int, global_batch_size: int, cluster: Cluster) -> None:
        self._global_batch_size = global_batch_size
        self._start, _ = rank_part(global_batch_size, cluster.rank, cluster.size)
        layers = [layer for layer in model._flatten_layers() if isinstance(layer, _RandomLayer)]
        # By their order, since the names of layers can depend on what else the process has built.
        self._generators = [_Generator(layer, seed, index, global_batch_size) for index, layer in enumerate(layers)]

    def positions(self, step: tf.Tensor, num_samples: tf.Tensor) -> tf.Tensor:
        """Return the positions in training of this rank's samples of a step.

        Args:
            step: Number of steps made, int64 [].
            num_samples: Number of this rank's samples, int32 [].

        Returns:
            int64 [num_samples].
        """
        return step * self._global_batch_size + self._start + tf.cast(tf.range(num_samples), tf.int64)

    @contextlib.contextmanager
    def at(self, positions: tf.Tensor) -> Iterator[None]:
        """Make the layers draw the numbers of these samples.

        Args:
            positions: Positions in training of the samples with which the model is called, int64 [B].
        """
        for generator in self._generators:
            generator.begin(positions)
        try:
            yield
        finally:
            for generator in self._generators:
                generator.begin(None)


def warn_of_other_randomness(graph: tf.Graph, layers: Sequence[str]) -> None:
    """Warn of layers that draw random numbers in a way that a resumed run does not repeat.

    Args:
        graph: The training step.
        layers: Names of the model's layers.
    """
    definition = graph.as_graph_def()
    # Loops and branches are functions of their own.
    nodes = itertools.chain(definition.node, *(function.node_def for function in definition.library.function))
    found = {
        next((part for part in reversed(node.name.split("/")) if part in layers), node.name): None
        for node in nodes
        if node.op in _WITH_STATE
    }
    if found:
        _log.warning(
            "Random numbers of %s do not follow from seed and step: a resumed run draws others, and all ranks may draw "
            "the same. Use Keras' own random layers, or tf.random.stateless_uniform and its like.",
            ", ".join(list(found)[:3]),
        )


class _Generator(_RandomGenerator):
    """Stands in the place of a layer's generator; the shapes that are drawn begin with the number of samples."""

    def __init__(self, layer: keras.layers.Layer, seed: int, index: int, global_batch_size: int) -> None:
        super().__init__(getattr(layer, "seed", None))
        self._key, self._global_batch_size = (seed << 20) + index, global_batch_size
        self._positions: tf.Tensor | None = None
        self._num_draws = 0
        noise_shape: Any = getattr(layer, "noise_shape", None) or [None]
        self._is_shared = noise_shape[0] == 1
        layer._random_generator = self
        if not isinstance(layer, _OF_BATCHES) and not hasattr(layer, "call_of_batch"):
            # Its numbers may be those of the whole batch, so it is called with one sample at a time.
            layer.call_of_batch = layer.call
            layer.call = functools.partial(_call_one_by_one, layer)

    def begin(self, positions: tf.Tensor | None, num_draws: int = 0) -> None:
        """Draw for these samples from now on, int64 [B], after so many draws; None to draw as Keras does."""
        self._positions, self._num_draws = positions, num_draws

    @property
    def positions(self) -> tf.Tensor | None:
        return self._positions

    @property
    def num_draws(self) -> int:
        """Number of draws since the step began."""
        return self._num_draws

    def dropout(self, inputs: tf.Tensor, rate: Any, noise_shape: Any = None) -> tf.Tensor:
        if self._positions is None:
            return super().dropout(inputs, rate, noise_shape)
        is_kept = self._uniform(tf.shape(inputs) if noise_shape is None else noise_shape) >= rate
        outputs = tf.where(is_kept, inputs * tf.cast(1.0 / (1.0 - rate), inputs.dtype), tf.zeros([], inputs.dtype))
        outputs.set_shape(inputs.shape)
        return outputs

    def random_uniform(
        self, shape: Any, minval: Any = 0.0, maxval: Any = None, dtype: Any = None, nonce: Any = None
    ) -> tf.Tensor:
        if self._positions is None:
            return super().random_uniform(shape, minval, maxval, dtype, nonce)
        dtype = tf.as_dtype(dtype or keras.backend.floatx())
        if dtype.is_integer:
            span = tf.cast(maxval, tf.int64) - tf.cast(minval, tf.int64)
            return tf.cast(_not_negative(self._bits(shape)) % span, dtype) + tf.cast(minval, dtype)
        low, high = tf.cast(minval, dtype), tf.cast(1.0 if maxval is None else maxval, dtype)
        return low + tf.cast(self._uniform(shape), dtype) * (high - low)

    def random_normal(
        self, shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, nonce: Any = None
    ) -> tf.Tensor:
        if self._positions is None:
            return super().random_normal(shape, mean, stddev, dtype, nonce)
        bits = self._bits(shape)
        # Box and Muller (1958), from two parts of the same bits; the first is never 0.
        first = _fraction(bits) + 2.0**-24
        second = _fraction(tf.bitwise.left_shift(bits, tf.constant(24, bits.dtype)))
        normal = tf.sqrt(-2.0 * tf.math.log(first)) * tf.cos(2.0 * np.pi * second)
        dtype = tf.as_dtype(dtype or keras.backend.floatx())
        return tf.cast(mean, dtype) + tf.cast(normal, dtype) * tf.cast(stddev, dtype)

    def truncated_normal(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        if self._positions is None:
            return super().truncated_normal(*args, **kwargs)
        raise NotImplementedError("no layer of Keras draws truncated normal numbers in its call")

    def make_seed_for_stateless_op(self) -> tf.Tensor | None:
        if self._positions is None:
            return super().make_seed_for_stateless_op()
        return _not_negative(self._bits([1, 2])[0])

    def _uniform(self, shape: Any) -> tf.Tensor:
        """Draw numbers from 0 to 1, float32."""
        return _fraction(self._bits(shape))

    def _bits(self, shape: Any) -> tf.Tensor:
        """Draw 63 random bits for each number, int64 of the given shape."""
        assert self._positions is not None
        shape = tf.convert_to_tensor(shape, tf.int32)
        rows = self._positions[:1] // self._global_batch_size if self._is_shared else self._positions
        keys = mix(mix(tf.constant((self._key << 8) + self._num_draws, tf.int64)) + rows)
        self._num_draws += 1
        # A layer that is called with one sample may draw any shape.
        num_each = tf.cast(tf.reduce_prod(shape) // tf.shape(keys)[0], tf.int64)
        return tf.reshape(mix(keys[:, tf.newaxis] + tf.range(num_each)), shape)


def _fraction(bits: tf.Tensor) -> tf.Tensor:
    """Make float32 numbers in [0, 1) of 24 of the bits; the highest bit of a hash is always 0."""
    highest = tf.bitwise.bitwise_and(right_shift(bits, 39), tf.constant((1 << 24) - 1, bits.dtype))
    return tf.cast(highest, tf.float32) * tf.constant(2.0**-24, tf.float32)


def _not_negative(bits: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_and(bits, tf.constant((1 << 63) - 1, bits.dtype))


def _call_one_by_one(layer: keras.layers.Layer, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    generator, call = layer._random_generator, layer.call_of_batch
    positions = generator.positions
    if positions is None or not isinstance(inputs, tf.Tensor):
        return call(inputs, *args, **kwargs)

    first_draw = generator.num_draws
    shapes: list[tf.TensorShape] = []

    def call_one(sample: Sequence[tf.Tensor]) -> tf.Tensor:
        generator.begin(sample[1][tf.newaxis], first_draw)
        output = call(sample[0][tf.newaxis], *args, **kwargs)[0]
        shapes.append(output.shape)
        return output

    # A layer around it may have made several rows of each sample, such as the frames of a video.
    num_rows = tf.shape(inputs, tf.int64)[0] // tf.maximum(tf.size(positions, tf.int64), 1)
    rows = tf.reshape(positions[:, tf.newaxis] + tf.range(num_rows) * _ROW, [-1])
    outputs = tf.map_fn(call_one, (inputs, rows), fn_output_signature=tf.as_dtype(layer.compute_dtype))
    # A later call of the same layer, as of a shared one, draws other numbers.
    generator.begin(positions, generator.num_draws)
    if shapes:
        # Not that of the layer: inside of another layer it has none, and a shared one has several.
        outputs.set_shape([None, *shapes[0]])
    return outputs
