"""What a model is trained by that its copies do not keep."""

import logging
import weakref

from resrep_dist.errors import ModelError

from tensorflow import keras

_log = logging.getLogger(__name__)
_METHODS = ("train_step", "compute_loss")
_warned: "weakref.WeakSet[keras.Model]" = weakref.WeakSet()


def check_objective(model: keras.Model) -> None:
    """Check that a copy of a model is trained by the same objective, and warn once of what else the copy lacks.

    Args:
        model: A functional Keras model.

    Raises:
        ModelError: If a loss was added to the model itself, or to one inside of it. Those of its layers are kept.
    """
    parts = [model, *model._flatten_layers(include_self=False)]
    # What is added to a functional model is a layer of its own that no output depends on, or a function of the model.
    kinds = {type(part).__name__ for part in parts}
    if "AddLoss" in kinds or any(isinstance(part, keras.Model) and part._callable_losses for part in parts):
        raise ModelError(
            f"model {model.name}: received a loss by model.add_loss, which a copy of the model would not have, "
            "expected none; call self.add_loss in the `call` of a layer, which is kept, or put it into the loss"
        )
    dropped = [name for name in _METHODS if getattr(type(model), name) is not getattr(keras.Model, name)]
    dropped += ["add_metric"] if "AddMetric" in kinds else []
    if dropped and model not in _warned:
        _warned.add(model)
        _log.warning(
            "Model %s: its own %s is not used; call self.add_loss and self.add_metric in the `call` of a layer, "
            "or give loss and metrics to the training.",
            model.name,
            " and ".join(dropped),
        )
