"""Loads a written model with the installed Keras 3, in a process of its own, and computes its outputs there.

This process has chosen Keras 2, and a process has one Keras.
"""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from resrep_dist.errors import CertificateError, one_line
from resrep_dist.merging.certificate import outputs_of

import numpy as np
import tensorflow as tf
from tensorflow import keras

_log = logging.getLogger(__name__)
# TensorFlow is imported from a cold disk, and the processes of other jobs may have all cores.
_LIMIT_SECONDS = 1800
_BATCH_SIZE = 64
_NO_KERAS_3 = 3
_PROGRAM = f"""
import sys
try:
    import keras
    assert keras.__version__.startswith("3")
except (ImportError, AssertionError):
    sys.exit({_NO_KERAS_3})
import numpy
path, images, outputs = sys.argv[1:]
model = keras.saving.load_model(path, compile=False)
with numpy.load(images) as arrays:
    images = [arrays[name] for name in arrays.files]
images = keras.tree.pack_sequence_as(model.input, images) if len(images) > 1 else images[0]
result = model.predict(images, batch_size={_BATCH_SIZE}, verbose=0)
numpy.savez(outputs, *keras.tree.flatten(result))
print(keras.__version__)
"""


class Keras3Comparison(NamedTuple):
    """Comparison of a written file in Keras 3 with a model."""

    version: str
    """Version of Keras 3."""
    max_relative_difference: float
    """Largest absolute difference of two outputs, as a fraction of the largest absolute output."""


def compare_in_keras3(model: keras.Model, path: Path | str, images: Any) -> Keras3Comparison | None:
    """Load a file with Keras 3 and compare its outputs with those of a model.

    Args:
        model: The model whose outputs the file must have.
        path: A model file.
        images: float32 [N, height, width, channels]; for a model with several inputs a list or dict of arrays.

    Returns:
        None if Keras 3 is not installed or does not answer; the log says so.

    Raises:
        CertificateError: If Keras 3 cannot load or run the file.
    """
    found = outputs_in_keras3(Path(path), images)
    if found is None:
        return None
    version, received = found
    # Where Keras 3 computes too: a GPU rounds at other places, by more than the tolerance.
    with tf.device("CPU:0"):
        pairs = zip(outputs_of(model, images, _BATCH_SIZE), received, strict=True)
    differences = [float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(a))), 1e-30) for a, b in pairs]
    # Python's max would forget a NaN that is not the first.
    return Keras3Comparison(version, float(np.max(differences)))


def outputs_in_keras3(path: Path, images: Any) -> tuple[str, list[np.ndarray]] | None:
    """Load a file with Keras 3 and compute its outputs.

    Args:
        path: A model file.
        images: float32 [N, height, width, channels]; for a model with several inputs a list or dict of arrays.

    Returns:
        The version of Keras, and the outputs. None if Keras 3 is not installed or does not answer; the log says so.

    Raises:
        CertificateError: If Keras 3 cannot load or run the file.
    """
    changes = {"TF_USE_LEGACY_KERAS": "0", "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **changes, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "images.npz", Path(folder) / "outputs.npz"
        np.savez(inputs, *tf.nest.flatten(images))
        # The current folder of that process is an empty one, so that it imports nothing from here.
        command = [sys.executable, "-c", _PROGRAM, str(path.absolute()), str(inputs), str(outputs)]
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, env=environment, cwd=folder, timeout=_LIMIT_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            _log.warning("Keras 3 did not answer (%s); %s is not compared with it.", one_line(error), path)
            return None
        # A negative code is that of a signal, such as for too little memory.
        if result.returncode == _NO_KERAS_3 or result.returncode < 0:
            _log.warning(
                "Keras 3 cannot be used here (exit code %d); %s is not tried with it.", result.returncode, path
            )
            return None
        if result.returncode:
            problem = one_line((result.stderr.strip().splitlines() or ["no message"])[-1], 300)
            raise CertificateError(f"{path.name}: Keras 3 cannot load or run it ({problem}); it is not written")
        with np.load(outputs) as arrays:
            return result.stdout.split()[-1], [arrays[name] for name in arrays.files]
