"""A functional model -> the same with other layers in the place of some: precision."""

from collections.abc import Callable

from resrep_dist.graph import copy_weights, flatten, rebuild

from tensorflow import keras


def replace_layers(
    model: keras.Model, replacement: Callable[[keras.layers.Layer], keras.layers.Layer | None]
) -> keras.Model:
    """A copy of the model with equal weights.

    Args:
        replacement: gets a layer and returns one of the same name and weights, not built yet, or none to keep it.
    """
    model = flatten(model)
    replacements = {layer.name: replacement(layer) for layer in model.layers}
    copy = rebuild(
        model, lambda layer, clone, inputs: (replacements[layer.name] or clone)(*inputs.args, **inputs.kwargs)
    )
    copy_weights(model, copy)
    return copy


def with_precision(model: keras.Model, precision: str) -> keras.Model:
    """The model under one of Keras' policies; itself where it is already as wanted.

    Weights stay float32, compactor kernels and masks among them; with `mixed_float16` and `mixed_bfloat16` the
    layers compute in 16 bits, but the last, since the loss needs its digits. `float32` turns that back.
    """
    is_mixed = any(layer.dtype_policy.name.startswith("mixed") for layer in model.layers)
    if precision == "float32" and not is_mixed:
        return model
    in_full = set(model.output_names)

    def convert(layer: keras.layers.Layer) -> keras.layers.Layer | None:
        config = layer.get_config()
        if isinstance(layer, keras.layers.InputLayer) or "dtype" not in config:
            return None
        policy = "float32" if layer.name in in_full else precision
        return layer.__class__.from_config({**config, "dtype": policy})

    return replace_layers(model, convert)
