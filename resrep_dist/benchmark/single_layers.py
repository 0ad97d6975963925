"""Layers of other widths, alone or behind another one, as models."""

import json
from typing import Any

from resrep_dist.timing.calls import WeightedCall

from tensorflow import keras

_NUM_CHEAP_CHANNELS = 16


def layer_at(layer: Any, call: WeightedCall, inputs: int, outputs: int, *, behind_another: bool = False) -> keras.Model:
    """Return a layer of other widths with a bias, between an input and a ReLU, as in a merged model.

    Args:
        layer: The layer.
        call: Its call.
        inputs: Number of input channels.
        outputs: Number of output channels; not used if the layer treats every channel alone.
        behind_another: True to put it behind `cheap_layer`.
    """
    config = {**layer.get_config(), "name": "layer", "use_bias": True, "activation": None}
    config.pop("batch_input_shape", None)
    for name in ("filters", "units"):
        if name in config:
            config[name] = inputs if call.is_per_channel else outputs
    if call.is_per_channel and "groups" in config:
        config["groups"] = inputs
    clone = keras.layers.ReLU(), type(layer).from_config(config)
    if behind_another:
        before = cheap_layer(call, inputs)
        return keras.Model(before.input, clone[0](clone[1](before.output)))
    images = keras.Input((*json.loads(call.signature)["size"], inputs))
    return keras.Model(images, clone[0](clone[1](images)))


def cheap_layer(call: WeightedCall, inputs: int) -> keras.Model:
    """Return a 1x1 convolution of few channels with a ReLU, whose outputs are the inputs of a layer.

    Args:
        call: The call of the layer, on images.
        inputs: Number of its input channels.
    """
    images = keras.Input((*json.loads(call.signature)["size"], _NUM_CHEAP_CHANNELS))
    return keras.Model(images, keras.layers.ReLU()(keras.layers.Conv2D(inputs, 1, name="before")(images)))
