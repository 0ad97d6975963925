"""The certificate: a measured comparison of the outputs of the slim model with those of the trained one."""

import dataclasses

from resrep_dist.errors import CertificateError
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
    """Largest absolute difference of two logits, as a fraction of the largest absolute logit of the trained model."""
    argmax_agreement: float
    """Fraction of the images for which both models predict the same class."""
    channels: dict[str, dict[str, int]]
    """For each group, by name, the number of channels: `kept` and `original`."""
    keras3_version: str | None = None
    """Version of Keras 3 in which the written file was run; None if it was not."""
    keras3_max_relative_difference: float | None = None
    """Largest absolute difference of its outputs there and those of the trained model, as a fraction of the largest."""


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


def certify(
    trained: keras.Model, slim: keras.Model, images: np.ndarray, channels: dict[str, dict[str, int]]
) -> Certificate:
    """Compare the logits of two models on the same images, without TF32, whatever the training used.

    Args:
        trained: The trained model with compactors.
        slim: The merged model.
        images: float32 [N, height, width, channels].
        channels: For `Certificate.channels`.
    """
    with strict_float32():
        expected, received = logits(trained, images), logits(slim, images)
    difference = float(np.max(np.abs(expected - received)))
    return Certificate(
        num_images=len(images),
        max_abs_difference=difference,
        max_relative_difference=difference / max(float(np.max(np.abs(expected))), 1e-30),
        argmax_agreement=float(np.mean(expected.argmax(-1) == received.argmax(-1))),
        channels=channels,
    )


def logits(model: keras.Model, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Return the model's outputs before the softmax or sigmoid.

    Args:
        model: A model with or without one at its end.
        images: float32 [N, height, width, channels].
        batch_size: Number of images that are computed at once.

    Returns:
        [N, num_classes].
    """
    model = with_logits(model)
    run = tf.function(lambda batch: model(batch, training=False), reduce_retracing=True)
    return np.concatenate([run(tf.constant(images[i : i + batch_size])) for i in range(0, len(images), batch_size)])
