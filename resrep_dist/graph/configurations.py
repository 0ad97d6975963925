"""What the copy of a layer is made from."""

from typing import Any

from resrep_dist.errors import ModelError

from tensorflow import keras


def config_of(layer: keras.layers.Layer) -> dict[str, Any]:
    """Return the configuration of a layer, from which a copy can be made.

    Args:
        layer: A layer.
    """
    config = dict(layer.get_config())
    activation = getattr(layer, "activation", None)
    # The function itself: Keras writes its name, and finds only its own functions by name.
    if "activation" in config and callable(activation) and not isinstance(activation, keras.layers.Layer):
        config["activation"] = activation
    return config


def activity_regularization(layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
    """Return a layer that regularizes its input as another layer does its output.

    Args:
        layer: A layer with an activity regularizer.
        name: Name of the new layer.

    Raises:
        ModelError: If the regularizer is none of Keras' norms.
    """
    regularizer = layer.activity_regularizer
    if type(regularizer) not in (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2):
        raise ModelError(
            f"layer {layer.name}: its activity_regularizer is a {type(regularizer).__name__}, expected L1, L2 or L1L2; "
            "use one of these, or put the activation into a layer of its own"
        )
    strengths = {key: float(getattr(regularizer, key, 0.0)) for key in ("l1", "l2")}
    return keras.layers.ActivityRegularization(**strengths, name=name)
