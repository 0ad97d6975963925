"""The files whose latency is measured: base and slim model in every format, with their sizes and scores."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resrep_dist.errors import UserError
from resrep_dist.export.convert import FORMATS, export_model, size_bytes
from resrep_dist.export.eight_bits import EIGHT_BIT_FORMATS, write_eight_bits
from resrep_dist.export.encoding import encoding_once
from resrep_dist.export.inference import Inference, from_keras, open_program, with_one_output
from resrep_dist.export.record import RECORD_NAME
from resrep_dist.models.files import file_sha256
from resrep_dist.models.result_folder import EXPORT_NAME

import numpy as np
from tensorflow import keras

_log = logging.getLogger(__name__)
_NUM_CALIBRATION_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class InferenceFile:
    """A model in one format, open."""

    format: str
    """`keras`, or a format of `resrep export`."""
    model: str
    """`base` or `slim`."""
    inference: Inference
    """The open file, see `open_for_timing`."""
    size_bytes: int | None
    """Size of the file, bytes; None if it was not written."""
    score: float | None = None
    """Score on the validation set, percent, if it is not that of the Keras model: of an eight-bit export of a run."""

    @property
    def runtime(self) -> str:
        """What runs it; files of one runtime are timed in turn."""
        return self.format if self.format == "saved_model" else self.format.partition("_")[0]


def files_in_every_format(
    models: Mapping[str, keras.Model], paths: Mapping[str, Path], folder: Path, run: Path | None
) -> list[InferenceFile]:
    """Return the models in all formats; formats that cannot be written on this machine are left out and logged.

    Args:
        models: The models `base` and `slim`.
        paths: Their Keras files, if there are any.
        folder: Folder for the other files.
        run: Folder of the run, whose eight-bit exports of the slim model are taken; None for none.
    """
    files = [
        InferenceFile("keras", name, from_keras(model), size_bytes(paths[name]) if name in paths else None)
        for name, model in models.items()
    ]
    for format_name in (*FORMATS, *EIGHT_BIT_FORMATS):
        try:
            exported = _exported(run, format_name, paths) if run else None
            files += [
                exported if exported and name == "slim" else _written(model, name, format_name, folder / name)
                for name, model in models.items()
            ]
        except (UserError, RuntimeError) as error:
            _log.warning("Left out: %s", error)
    return files


def _written(model: keras.Model, name: str, format_name: str, folder: Path) -> InferenceFile:
    if format_name in FORMATS:
        path = export_model(model, format_name, folder, noise_for(model, 32), 1e-3).path
    else:
        path = folder / EIGHT_BIT_FORMATS[format_name].file_name
        # How long an operation takes does not depend on the scale of its integers, so noise calibrates it as well.
        write_eight_bits(model, format_name, path, noise_for(model, _NUM_CALIBRATION_IMAGES))
    return InferenceFile(format_name, name, open_for_timing(path), size_bytes(path))


def open_for_timing(path: Path) -> Inference:
    """Open an exported file so that `run` is the file alone, with none of our conversions of its integers.

    Args:
        path: The file. If it has integers at its ends, `run` encodes an array when it is first given, and gives
            integers.
    """
    program = open_program(path)
    if program.run_integers:
        program = dataclasses.replace(program, run=encoding_once(program.run_integers, program.encodings))
    return with_one_output(program, str(path))


def _exported(run: Path, format_name: str, paths: Mapping[str, Path]) -> InferenceFile | None:
    """Return an eight-bit export of the run's present slim model; None if there is none."""
    if format_name not in EIGHT_BIT_FORMATS:
        return None
    path = run / EXPORT_NAME / EIGHT_BIT_FORMATS[format_name].file_name
    try:
        record: dict[str, Any] = json.loads((path.parent / RECORD_NAME).read_text(encoding="utf-8"))[path.name]
        is_current = record["model_sha256"] == file_sha256(paths["slim"]) and path.exists()
        score = float(record["eight_bit_score"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not is_current:
        _log.warning("%s is of an earlier slim model; `resrep export` writes it again.", path)
        return None
    return InferenceFile(format_name, "slim", open_for_timing(path), size_bytes(path), score)


def noise_for(model: keras.Model, num_images: int) -> np.ndarray:
    """Return random images for a model, float32 [N, height, width, channels].

    Args:
        model: A model with one input.
        num_images: Number of images.
    """
    return np.random.default_rng(0).normal(size=(num_images, *model.input_shape[1:])).astype(np.float32)
