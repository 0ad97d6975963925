"""The proof that a slim model gives the outputs of the trained one."""

import dataclasses

from resrep_dist.errors import CertificateError
from resrep_dist.models.softmax import without_softmax

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
    """For each group the channels `kept` and `original`."""


def check_certificate(certificate: Certificate, tolerance: float) -> None:
    """Raise a CertificateError unless the difference is within the tolerance (relative to the largest logit)."""
    # Written so that a difference that is not a number is refused as well.
    if not certificate.max_relative_difference <= tolerance:
        raise CertificateError(
            f"the slim model differs from the trained one by {certificate.max_relative_difference:.2g} of the "
            f"largest logit on {certificate.num_images} images, tolerance {tolerance:.2g}; it is not written"
        )


def certify(
    trained: keras.Model, slim: keras.Model, images: np.ndarray, channels: dict[str, dict[str, int]]
) -> Certificate:
    """Compare the logits of two models on the same images."""
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
    """The model's outputs before the softmax, [N, classes]."""
    model = without_softmax(model)
    run = tf.function(lambda batch: model(batch, training=False), reduce_retracing=True)
    return np.concatenate([run(tf.constant(images[i : i + batch_size])) for i in range(0, len(images), batch_size)])
