"""Models and weights on disk."""

import os
import warnings
from pathlib import Path

from resrep_dist.errors import ModelError
from resrep_dist.models.keras3 import make_readable_by_keras3

from tensorflow import keras


def save_model(model: keras.Model, path: Path) -> None:
    """Save as HDF5, the format that Keras 2 and Keras 3 both read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.h5")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are saving your model as an HDF5 file")
        model.save(partial, include_optimizer=False, save_format="h5")
    make_readable_by_keras3(partial)
    os.replace(partial, path)


def load_model(path: Path) -> keras.Model:
    """Load a plain Keras model; code inside the file is refused."""
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"model {path}: cannot be loaded ({_one_line(error)})") from None


def load_weights(model: keras.Model, path: Path) -> None:
    """Load a weights or model file (.h5) into a model, by layer, in order."""
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"weights {path}: cannot be loaded into {model.name} ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
