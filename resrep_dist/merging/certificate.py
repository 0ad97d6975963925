"""The certificate: a measured comparison of the outputs of the slim model with those of the trained one."""

import dataclasses
from typing import Any

from resrep_dist.errors import CertificateError
from resrep_dist.models.ends import names_of_outputs
from resrep_dist.models.softmax import with_logits
from resrep_dist.models.strict_float32 import strict_float32

import numpy as np
import tensorflow as tf
from tensorflow import keras


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Comparison of the slim model with the trained one on the same images, in float32, before a softmax or sigmoid."""

    num_images: int
    """Number of images that were compared."""
    max_abs_difference: float
    """Largest absolute difference of two logits."""
    max_relative_difference: float
    """Largest absolute difference of two logits, as a fraction of the largest absolute logit of the trained model. Of
    several outputs the worst one."""
    argmax_agreement: float
    """Fraction of the images for which both models predict the same class: for which the same value is the largest on
    the last axis. For maps that of the pixels."""
    channels: dict[str, dict[str, int]]
    """For each group, by name, the number of channels: `kept` and `original`."""
    keras3_version: str | None = None
    """Version of Keras 3 in which the written file was run; None if it was not."""
    keras3_max_relative_difference: float | None = None
    """Largest absolute difference of its outputs there and those of the trained model, as a fraction of the largest."""
    relative_differences: dict[str, float] = dataclasses.field(default_factory=dict)
    """`max_relative_difference` of each output, by its key or the name of its layer."""


def check_certificate(certificate: Certificate, tolerance: float) -> None:
    """Check that the outputs of the slim model are those of the trained one.

    Args:
        certificate: The comparison.
        tolerance: Largest accepted `max_relative_difference`.

    Raises:
        CertificateError: If the difference is larger, or not a number.
    """
    of_keras3 = certificate.keras3_max_relative_difference
    if of_keras3 is not None and not of_keras3 <= tolerance:
        raise CertificateError(
            f"the slim model's file differs in Keras {certificate.keras3_version} from the trained model by "
            f"{of_keras3:.2g} of the largest output, tolerance {tolerance:.2g}; it is not written"
        )
    # `not <=` instead of `>`, so that a NaN is refused as well.
    if not certificate.max_relative_difference <= tolerance:
        raise CertificateError(
            f"the slim model differs from the trained one by {certificate.max_relative_difference:.2g} of the "
            f"largest logit on {certificate.num_images} images, tolerance {tolerance:.2g}; it is not written"
        )


def certify(trained: keras.Model, slim: keras.Model, images: Any, channels: dict[str, dict[str, int]]) -> Certificate:
    """Compare the logits of two models on the same images, without TF32, whatever the training used.

    Of several outputs the worst one counts.

    Args:
        trained: The trained model with compactors.
        slim: The merged model.
        images: float32 [N, height, width, channels]; for a model with several inputs a list or dict of arrays.
        channels: For `Certificate.channels`.
    """
    with strict_float32():
        pairs = list(zip(*(outputs_of(with_logits(model), images) for model in (trained, slim)), strict=True))
    largest = [max(float(np.max(np.abs(expected))), 1e-30) for expected, _ in pairs]
    differences = [float(np.max(np.abs(expected - received))) for expected, received in pairs]
    relative = np.divide(differences, largest)
    agreements = [float(np.mean(a.argmax(-1) == b.argmax(-1))) for a, b in pairs]
    return Certificate(
        num_images=len(tf.nest.flatten(images)[0]),
        max_abs_difference=max(differences),
        # A NaN in any output makes it a NaN.
        max_relative_difference=float(np.max(relative)),
        argmax_agreement=min(agreements),
        channels=channels,
        relative_differences=dict(zip(names_of_outputs(trained), map(float, relative), strict=True)),
    )


def logits(model: keras.Model, images: Any, batch_size: int = 64) -> np.ndarray:
    """Return the outputs of a model with one output, before the softmax or sigmoid.

    Args:
        model: A model with or without one at its end.
        images: float32 [N, height, width, channels]; for a model with several inputs a list or dict of arrays.
        batch_size: Number of images that are computed at once.

    Returns:
        [N, num_classes].
    """
    (outputs,) = outputs_of(with_logits(model), images, batch_size)
    return outputs


def outputs_of(model: keras.Model, images: Any, batch_size: int = 64) -> list[np.ndarray]:
    """Return each output of a model.

    Args:
        model: The model.
        images: float32 [N, height, width, channels]; for a model with several inputs a list or dict of arrays.
        batch_size: Number of images that are computed at once.

    Returns:
        Arrays of length N, in the order of `model.outputs`.
    """
    run = tf.function(lambda batch: tf.nest.flatten(model(batch, training=False)), reduce_retracing=True)

    def part(start: int) -> Any:
        return tf.nest.map_structure(lambda array: tf.constant(array[start : start + batch_size]), images)

    parts = [run(part(start)) for start in range(0, len(tf.nest.flatten(images)[0]), batch_size)]
    return [np.concatenate([output.numpy() for output in outputs]) for outputs in zip(*parts, strict=True)]
