"""A trained model with compactors -> a slim plain Keras model with the same outputs, and the proof."""

import contextlib
import dataclasses
import io
import logging
import types
from collections.abc import Mapping, Sequence
from typing import Any

from resrep_dist.compactor import compactors_of
from resrep_dist.errors import CertificateError, ModelError
from resrep_dist.graph import ELEMENTWISE, CallInputs, Graph, PrunableLayer, copy_weights, rebuild

import numpy as np
import tensorflow as tf
from tensorflow import keras


@dataclasses.dataclass(frozen=True)
class Certificate:
    """How the slim model compares with the trained one on the same images, in float32, before the softmax."""

    num_images: int
    max_abs_difference: float
    """Largest difference of two logits."""
    max_relative_difference: float
    """The same, as a fraction of the largest logit."""
    argmax_agreement: float
    """Share of the images with the same largest logit."""
    channels: dict[str, dict[str, int]]
    """For each prunable layer the channels `kept` and `original`."""


def merge(
    model: keras.Model,
    graph: Graph,
    images: np.ndarray,
    *,
    tolerance: float = 1e-4,
    dead_row_norm: float = 0.0,
) -> tuple[keras.Model, Certificate]:
    """Fold conv + batch norm + compactor (section 3.2), delete dead channels, compare the outputs.

    Args:
        model: with the graph's compactors in it.
        images: what the models are compared on, [N, height, width, channels].
        tolerance: largest difference of the logits that is accepted, relative to the largest logit.
        dead_row_norm: rows of at most this norm are deleted.

    Raises:
        CertificateError: when the slim model differs by more.
    """
    dead = dead_channels(model, graph, dead_row_norm)
    slim = delete_channels(fold_model(model, graph), dead)
    certificate = certify(model, slim, images, _count_channels(graph, dead))
    check_certificate(certificate, tolerance)
    return slim, certificate


def check_certificate(certificate: Certificate, tolerance: float) -> None:
    """Raise a CertificateError unless the difference is within the tolerance (relative to the largest logit)."""
    # Written so that a difference that is not a number is refused as well.
    if not certificate.max_relative_difference <= tolerance:
        raise CertificateError(
            f"the slim model differs from the trained one by {certificate.max_relative_difference:.2g} of the "
            f"largest logit on {certificate.num_images} images, tolerance {tolerance:.2g}; it is not written"
        )


def dead_channels(model: keras.Model, graph: Graph, dead_row_norm: float = 0.0) -> dict[str, list[int]]:
    """For each prunable convolution the masked rows whose norm is at most `dead_row_norm`."""
    dead = {}
    for layer, compactor in zip(graph.layers, compactors_of(model, graph), strict=True):
        norms = np.linalg.norm(compactor.kernel.numpy()[0, 0], axis=0)
        dead[layer.name] = np.flatnonzero((norms <= dead_row_norm) & (compactor.mask.numpy() == 0)).tolist()
    return dead


def fold_arrays(
    kernel: np.ndarray, bias: np.ndarray, scale: np.ndarray, offset: np.ndarray, compactor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fold y -> Q (scale * (K x + bias) + offset) into one kernel and bias (section 3.2).

    Args:
        kernel: [height, width, channels in, D].
        bias, scale, offset: [D].
        compactor: [D, D_out].
    """
    arrays = (np.asarray(array, np.float64) for array in (kernel, bias, scale, offset, compactor))
    kernel, bias, scale, offset, compactor = arrays
    return (kernel * scale) @ compactor, (bias * scale + offset) @ compactor


def fold_model(model: keras.Model, graph: Graph) -> keras.Model:
    """The plain model: each prunable convolution holds its batch norm and compactor, dead channels too."""
    by_convolution = {layer.name: layer for layer in graph.layers}
    skipped = {layer.compactor for layer in graph.layers} | {layer.batch_norm for layer in graph.layers}

    def without_compactor(layer: keras.layers.Layer, clone: keras.layers.Layer, inputs: CallInputs) -> Any:
        if layer.name in skipped:
            return inputs.args[0]
        if layer.name in by_convolution:
            compactor = model.get_layer(by_convolution[layer.name].compactor)
            filters = int(compactor.kernel.shape[-1])
            config = {**layer.get_config(), "use_bias": True, "filters": filters}
            clone = keras.layers.Conv2D.from_config(config)
        return clone(*inputs.args, **inputs.kwargs)

    plain = rebuild(model, without_compactor)
    folded = {layer.name for layer in graph.layers}
    copy_weights(model, plain, skip=folded)
    for layer in graph.layers:
        plain.get_layer(layer.name).set_weights(_folded_weights(model, layer))
    return plain


def delete_channels(model: keras.Model, channels: dict[str, list[int]]) -> keras.Model:
    """Delete output channels of convolutions, and what consumes them, with kerassurgeon."""
    jobs = {name: indices for name, indices in channels.items() if indices}
    if not jobs:
        return model
    # kerassurgeon knows the layer Activation but not ReLU and its like: these step aside meanwhile.
    activations = {layer.name: layer for layer in model.layers if isinstance(layer, ELEMENTWISE)}
    stand_in = rebuild(model, lambda layer, clone, inputs: _as_activation(layer, clone)(*inputs.args))
    copy_weights(model, stand_in)
    surgeon = _kerassurgeon().Surgeon(stand_in)
    for name, indices in jobs.items():
        surgeon.add_job("delete_channels", stand_in.get_layer(name), channels=indices)
    with contextlib.redirect_stdout(io.StringIO()):
        narrow = surgeon.operate()
    # A rebuilt model is also free of kerassurgeon's traces: it calls new layers where old ones stood.
    slim = rebuild(narrow, lambda layer, clone, inputs: _restored(layer, clone, activations)(*inputs.args))
    copy_weights(narrow, slim)
    slim._name = model.name
    return slim


def _as_activation(layer: keras.layers.Layer, clone: keras.layers.Layer) -> keras.layers.Layer:
    return keras.layers.Activation("linear", name=layer.name) if isinstance(layer, ELEMENTWISE) else clone


def _restored(
    layer: keras.layers.Layer, clone: keras.layers.Layer, originals: dict[str, keras.layers.Layer]
) -> keras.layers.Layer:
    original = originals.get(layer.name)
    return original.__class__.from_config(original.get_config()) if original else clone


def certify(
    trained: keras.Model, slim: keras.Model, images: np.ndarray, channels: dict[str, dict[str, int]]
) -> Certificate:
    """Compare the logits of two models on the same images."""
    expected, received = logits(trained, images), logits(slim, images)
    difference = float(np.max(np.abs(expected - received)))
    return Certificate(
        num_images=len(images),
        max_abs_difference=difference,
        max_relative_difference=difference / float(np.max(np.abs(expected))),
        argmax_agreement=float(np.mean(expected.argmax(-1) == received.argmax(-1))),
        channels=channels,
    )


def logits(model: keras.Model, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """The model's outputs before the softmax, [N, classes]."""
    model = _without_softmax(model)
    run = tf.function(lambda batch: model(batch, training=False), reduce_retracing=True)
    return np.concatenate([run(tf.constant(images[i : i + batch_size])) for i in range(0, len(images), batch_size)])


def _without_softmax(model: keras.Model) -> keras.Model:
    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax):
        return keras.Model(model.inputs, last.input)
    if getattr(last, "activation", None) is not keras.activations.softmax:
        return model
    if isinstance(last, keras.layers.Activation):
        return keras.Model(model.inputs, last.input)
    linear = last.__class__.from_config({**last.get_config(), "activation": "linear"})
    result = keras.Model(model.inputs, linear(last.input))
    linear.set_weights(last.get_weights())
    return result


def _folded_weights(model: keras.Model, layer: PrunableLayer) -> tuple[np.ndarray, np.ndarray]:
    convolution = model.get_layer(layer.name)
    kernel = convolution.kernel.numpy()
    width = kernel.shape[-1]
    bias = convolution.bias.numpy() if convolution.use_bias else np.zeros(width)
    scale, offset = np.ones(width), np.zeros(width)
    if layer.batch_norm:
        scale, offset = batch_norm_as_affine(model.get_layer(layer.batch_norm))
    compactor = model.get_layer(layer.compactor).kernel.numpy()[0, 0]
    return fold_arrays(kernel, bias, scale, offset, compactor)


def batch_norm_as_affine(layer: keras.layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of a batch norm in inference, float64 [D] each."""
    deviation = np.sqrt(layer.moving_variance.numpy().astype(np.float64) + layer.epsilon)
    scale = (layer.gamma.numpy() if layer.scale else 1.0) / deviation
    return scale, (layer.beta.numpy() if layer.center else 0.0) - layer.moving_mean.numpy() * scale


def _count_channels(graph: Graph, dead: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    return {
        layer.name: {"kept": layer.width - len(dead[layer.name]), "original": layer.width} for layer in graph.layers
    }


def _kerassurgeon() -> Any:
    """kerassurgeon, mended: it asks isinstance(x, tf.Tensor), which no Keras tensor is since TensorFlow 2.4."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import kerassurgeon
        import kerassurgeon.surgeon
        import kerassurgeon.utils
    except ImportError as error:
        raise ModelError(
            f"kerassurgeon cannot be imported ({error}); `resrep doctor` gives the command that installs it"
        ) from None
    finally:
        # It configures the root logger when it is imported.
        root.handlers[:], root.level = handlers, level
    keras_tensor = type(keras.Input([1]))
    proxy = types.SimpleNamespace(Tensor=(tf.Tensor, keras_tensor))
    kerassurgeon.utils.tf = kerassurgeon.surgeon.tf = proxy
    return kerassurgeon
