"""Replaces layers of a functional model by others with the same weights, for example for mixed precision."""

from collections.abc import Callable

from resrep_dist.graph import config_of, copy_weights, flatten, rebuild

from tensorflow import keras


def replace_layers(
    model: keras.Model, replacement: Callable[[keras.layers.Layer], keras.layers.Layer | None]
) -> keras.Model:
    """Return a flat copy of a model in which some layers are replaced, with equal weights.

    Args:
        model: A functional model, which is not changed.
        replacement: Called with each layer of the flat model; returns a layer that is not built yet, with the same name
            and weights, or None to copy the layer.
    """
    model = flatten(model)
    replacements = {layer.name: replacement(layer) for layer in model.layers}
    copy = rebuild(
        model, lambda layer, clone, inputs: (replacements[layer.name] or clone)(*inputs.args, **inputs.kwargs)
    )
    copy_weights(model, copy)
    return copy


def with_precision(model: keras.Model, precision: str) -> keras.Model:
    """Return the model with a dtype policy; the model itself if it is float32 already and `precision` is too.

    Weights are always float32, including compactor kernels and masks. With a mixed policy all layers compute in 16
    bits but those that make the model's outputs, since the loss needs their precision.

    Args:
        model: A functional model, which is not changed.
        precision: `float32`, `mixed_float16` or `mixed_bfloat16`.
    """
    # Models of pure float16 or float64 too: their weights become float32.
    is_other = any(layer.dtype_policy.name != keras.backend.floatx() for layer in model.layers if not _is_input(layer))
    if precision == "float32" and not is_other:
        return model
    in_full = set(model.output_names)

    def convert(layer: keras.layers.Layer) -> keras.layers.Layer | None:
        config = config_of(layer)
        if _is_input(layer) or "dtype" not in config:
            return None
        policy = keras.backend.floatx() if precision == "float32" or layer.name in in_full else precision
        return layer.__class__.from_config({**config, "dtype": policy})

    return replace_layers(model, convert)


def pure_precision(model: keras.Model) -> str | None:
    """Return the type of a model's weights if it is another than the usual one: `float16`, `bfloat16` or `float64`.

    Args:
        model: A functional model.
    """
    usual = keras.backend.floatx()
    types = {str(weight.dtype.name) for weight in model.weights if weight.dtype.is_floating}
    return min(types - {usual}, default=None)


def _is_input(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.InputLayer)
