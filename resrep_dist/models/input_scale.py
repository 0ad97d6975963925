"""Finds out whether a model scales its input itself."""

from resrep_dist.graph import flatten, nodes

from tensorflow import keras

_SCALING = (keras.layers.Rescaling, keras.layers.Normalization)
_WITHOUT_SCALE = (
    "ZeroPadding2D", "Cropping2D", "CenterCrop", "Resizing", "Permute", "Reshape", "Activation", "Dropout",
    "GaussianNoise", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom", "RandomCrop",
)  # fmt: skip


def scaling_layer(model: keras.Model) -> str | None:
    """Return the name of the Rescaling or Normalization layer with which a model begins; None if there is none.

    Args:
        model: A functional model. Arithmetic on its input (`x / 127.5 - 1`) counts as Rescaling.
    """
    flat = flatten(model)
    reached = {str(id(tensor)) for tensor in flat.inputs}
    for node in nodes(flat):
        if reached.isdisjoint(node.flat_input_ids):
            continue
        if isinstance(node.layer, _SCALING):
            return str(node.layer.name)
        if type(node.layer).__name__ in _WITHOUT_SCALE:
            reached.update(node.flat_output_ids)
    return None
