from resrep_dist.config import TrainingConfig
from resrep_dist.errors import ConfigError
from resrep_dist.training.losses import make_loss, make_metrics, update_metric

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

RANDOM = np.random.default_rng(0)
OUTPUTS = RANDOM.normal(size=(6, 4)).astype(np.float32)
LABELS = np.array([0, 3, 1, 1, 2, 0])
PROBABILITIES = np.exp(OUTPUTS) / np.exp(OUTPUTS).sum(-1, keepdims=True)


def model_with(activation):
    inputs = keras.Input([3])
    return keras.Model(inputs, keras.layers.Dense(4, activation=activation)(inputs))


def loss_of(outputs=OUTPUTS, activation=None, **options):
    return make_loss(TrainingConfig(**options), model_with(activation))(tf.constant(LABELS), tf.constant(outputs))


@pytest.mark.parametrize("outputs, activation", [(OUTPUTS, None), (PROBABILITIES, "softmax")])
def test_label_smoothing_and_class_weights_of_logits_and_of_probabilities(outputs, activation):
    smooth = 0.1 * np.full([6, 4], 0.25) + 0.9 * np.eye(4)[LABELS]
    weights = (0.5, 2.0, 1.0, 0.0)
    expected = -(smooth * np.log(PROBABILITIES)).sum(-1) * np.take(weights, LABELS)
    received = loss_of(outputs, activation, label_smoothing=0.1, class_weights=weights)
    np.testing.assert_allclose(received, expected, rtol=1e-5)
    np.testing.assert_allclose(loss_of(outputs, activation), -np.log(PROBABILITIES[range(6), LABELS]), rtol=1e-5)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("mean_squared_error", ((OUTPUTS - np.eye(4)[LABELS]) ** 2).mean(-1)),
        ("MeanAbsoluteError", np.abs(OUTPUTS - np.eye(4)[LABELS]).mean(-1)),
        ("SparseCategoricalCrossentropy", -np.log(PROBABILITIES[range(6), LABELS])),
        ("CategoricalCrossentropy", -np.log(PROBABILITIES[range(6), LABELS])),
    ],
)
def test_keras_losses_by_the_names_of_functions_and_of_classes(name, expected):
    np.testing.assert_allclose(loss_of(loss=name), expected, rtol=1e-5)


def test_a_loss_of_the_users_own_by_its_registered_name():
    @keras.utils.register_keras_serializable("mine")
    def linear(labels, outputs):
        return -tf.reduce_sum(labels * outputs, -1)

    np.testing.assert_allclose(loss_of(loss="mine>linear"), -OUTPUTS[range(6), LABELS])


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"loss": "categorical_crossentropi"}, "did you mean `categorical_crossentropy`?"),
        ({"loss": "Loss"}, "expected a name of keras.losses or"),
        ({"loss": "mean_squared_error", "label_smoothing": 0.1}, "training.loss 'mean_squared_error' has no such"),
        ({"loss": "kl_divergence"}, "needs probabilities"),
        ({"class_weights": (1.0, 2.0)}, "training.class_weights: received 2 numbers, expected one for each of the 4"),
    ],
)
def test_what_cannot_be_used_is_refused(options, expected):
    with pytest.raises(ConfigError) as error:
        loss_of(**options)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_keras_metrics_get_what_their_names_ask_for():
    names = ["sparse_top_k_categorical_accuracy", "MeanIoU", "AUC", "categorical_crossentropy", "Precision", "F1Score"]
    metrics = make_metrics(names, model_with(None))
    for name, metric in zip(names, metrics, strict=True):
        # The check at the start leaves traces; an evaluation begins with a reset.
        metric.reset_state()
        update_metric(metric, name, tf.constant(LABELS), tf.constant(PROBABILITIES))
    values = dict(zip(names, (float(metric.result()) for metric in metrics), strict=True))
    assert values["sparse_top_k_categorical_accuracy"] == 1.0
    assert values["categorical_crossentropy"] == pytest.approx(
        -np.log(PROBABILITIES[range(6), LABELS]).mean(), rel=1e-5
    )
    predicted = PROBABILITIES.argmax(-1)
    unions = [((predicted == c) | (c == LABELS)).sum() for c in range(4)]
    overlaps = [((predicted == c) & (c == LABELS)).sum() for c in range(4)]
    assert values["MeanIoU"] == pytest.approx(np.mean([o / u for o, u in zip(overlaps, unions, strict=True) if u]))
    sizes = [(predicted == c).sum() + (c == LABELS).sum() for c in range(4)]
    assert values["F1Score"] == pytest.approx(np.mean([2 * o / s for o, s in zip(overlaps, sizes, strict=True)]))
    is_positive = PROBABILITIES > 0.5
    assert values["Precision"] == pytest.approx((is_positive & (np.eye(4)[LABELS] > 0)).sum() / is_positive.sum())


@pytest.mark.parametrize(
    "name, expected",
    [("Precison", "did you mean `Precision`"), ("IoU", "cannot be used"), ("Mean", "expected a name of keras.metrics")],
)
def test_metrics_that_cannot_be_used_are_refused(name, expected):
    with pytest.raises(ConfigError) as error:
        make_metrics([name], model_with(None))
    assert expected in str(error.value) and "\n" not in str(error.value)
