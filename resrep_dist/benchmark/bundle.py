"""Writes the folder from which another machine is measured: `resrep measure --bundle`."""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from resrep_dist import timing
from resrep_dist.benchmark.measure import Measured
from resrep_dist.benchmark.timers import layer_file, model_file, require_converter
from resrep_dist.config import Config
from resrep_dist.config.target import Runtime
from resrep_dist.errors import UserError
from resrep_dist.timing.bundle import MODELS_FILE, file_name, name_before, name_of_model, write_task
from resrep_dist.timing.grids import possible_points, unequal
from resrep_dist.timing.measuring import Progress

import numpy as np
from tensorflow import keras

# Enough different weights; repeated, so that files of layers get small.
_NUM_WEIGHTS = 61
_SCRIPT = '''"""Measures this machine: `python measure.py --help`. It needs numpy and {packages}."""

import sys
from pathlib import Path

from timing.command import main

sys.exit(main(Path(__file__).parent))
'''
_README = """# Times of {model} by its widths

This folder measures how long the layers of {model} take on a machine, by their widths, with {runtime_name}. Copy it
there as it is. Python 3.10 or newer, numpy and {packages} are all that it needs:

    pip install numpy {package}
    python measure.py --threads 1 --output costs.json

It takes minutes, in which the machine should do nothing else. Images in a batch: {batch_size}. At its end it says
whether the times are good enough to aim by. Then copy `costs.json` back, and prune with

    prune:
      target: {{latency_fraction: 0.6, costs: costs.json}}

| file | |
|---|---|
| `measure.py` | the command |
| `timing/` | what it does |
| `task.json` | which layers and models there are |
| `models.zip` | their files: single layers with random weights, and whole models with random weights |
"""
_NAMES = {"onnx": ("ONNX Runtime", "onnxruntime", "onnxruntime"),
          "tflite": ("TFLite", "an interpreter of TFLite (ai-edge-litert, tflite-runtime or tensorflow)",
                     "ai-edge-litert")}  # fmt: skip


def write_bundle(
    config: Config, runtime: Runtime, num_threads: int | None, batch_size: int, folder: Path, progress: Progress
) -> int:
    """Write the folder, completely or not at all.

    Args:
        config: The model, and what of it is pruned.
        runtime: What runs the layers: `onnx` or `tflite`.
        num_threads: Number of threads of the runtime; None for all cores of the machine.
        batch_size: Number of images in a batch.
        folder: The folder.
        progress: Is told how far it is.

    Returns:
        The number of files of layers and models.

    Raises:
        UserError: If the model cannot be pruned, the converter is not installed, the folder has files, or it cannot be
            written.
    """
    if runtime not in _NAMES:
        raise UserError(
            f"--bundle: received --runtime {runtime}, expected onnx or tflite, which run without TensorFlow"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--bundle {folder}: there is such a file, or a folder with files; give a new folder")
    versions = require_converter(runtime)
    measured = Measured(config, runtime, batch_size)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
            partial = Path(name) / "bundle"
            partial.mkdir()
            num_files = _write_models(measured, runtime, partial / MODELS_FILE, progress)
            write_task(partial, measured.task, versions, num_threads)
            _write_script(measured, runtime, partial)
            os.replace(partial, folder)
    except OSError as error:
        raise UserError(f"--bundle {folder}: cannot be written ({error.strerror}); give another folder") from None
    return num_files


def _write_models(measured: Measured, runtime: Runtime, path: Path, progress: Progress) -> int:
    with zipfile.ZipFile(path, "w") as archive:
        for name, model in _layers(measured, progress):
            data = layer_file(with_repeated_weights(model), runtime, measured.task.batch_size)
            archive.writestr(name, data, zipfile.ZIP_DEFLATED, compresslevel=1)
        for number, model in enumerate(measured.models):
            progress("writing whole models", number, len(measured.models))
            archive.writestr(name_of_model(measured.task, number), model_file(model, runtime), zipfile.ZIP_STORED)
        return len(archive.namelist())


def _layers(measured: Measured, progress: Progress) -> Iterator[tuple[str, keras.Model]]:
    """Yield the names and the models of all layers, each once."""
    points, done = possible_points(unequal(measured.task.calls)), set()
    for number, point in enumerate(points):
        progress("writing layers", number, len(points))
        yield file_name(measured.task, point), measured.layer(point)
        name = name_before(measured.task, point)
        if point[0].name in measured.task.behind and name not in done:
            done.add(name)
            yield name, measured.before(point)


def with_repeated_weights(model: keras.Model) -> keras.Model:
    """Give a model weights that repeat after a few, so that its file can be compressed; return the model.

    Args:
        model: A model whose time does not depend on its weights.
    """
    model.set_weights([np.resize(weights.ravel()[:_NUM_WEIGHTS], weights.shape) for weights in model.get_weights()])
    return model


def _write_script(measured: Measured, runtime: Runtime, folder: Path) -> None:
    source = Path(timing.__file__).parent
    shutil.copytree(source, folder / "timing", ignore=shutil.ignore_patterns("__pycache__"))
    runtime_name, packages, package = _NAMES[runtime]
    texts = {"model": measured.task.model, "runtime_name": runtime_name, "packages": packages, "package": package}
    for name, text in (("measure.py", _SCRIPT), ("README.md", _README)):
        filled = text.format(**texts, batch_size=measured.task.batch_size)
        (folder / name).write_text(filled, encoding="utf-8")
