"""Classifies image files by the model that a run ended with: the smallest proof that it can be used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resrep_dist.data.encoded import center_crop
from resrep_dist.data.normalization import Normalization
from resrep_dist.errors import DataError, UserError, one_line
from resrep_dist.models.files import load_model
from resrep_dist.models.result_folder import current_folder
from resrep_dist.models.softmax import ends_in_sigmoid
from resrep_dist.reporting.table import find_report, read_report

import tensorflow as tf


def predict(workdir: Path, paths: Sequence[Path], num_best: int = 3) -> list[list[tuple[str, float]]]:
    """Classify image files.

    Args:
        workdir: Folder of a finished run, or its folder `slim` or `final`.
        paths: The files, JPEG or PNG among others.
        num_best: Number of classes for each.

    Returns:
        For each file the most probable classes, the best first, with their probabilities. With `task: multilabel` each
        class has a probability of its own.

    Raises:
        UserError: If there is no such model, or its report does not say which pixels it expects.
        DataError: If a file cannot be read.
    """
    if workdir.name in ("slim", "final") and not find_report(workdir):
        workdir = workdir.parent
    report_path = find_report(workdir)
    report = read_report(workdir)
    usage: dict[str, Any] = report.get("usage") or {}
    pixels = usage.get("pixels") or {}
    if report_path is None or pixels.get("mean") is None:
        raise UserError(
            f"{workdir}: its report does not say which pixels the model expects: its images were no pixels from 0 "
            "to 255, or it was written by an older version; `resrep merge` writes a new one"
        )
    task = usage.get("task", "classification")
    if task == "segmentation":
        raise UserError(
            f"{workdir}: its model finds the class of each pixel, for which `resrep predict` has no form; load "
            f"{report_path.parent}/model.h5 with Keras"
        )
    height, width = pixels["image_size"]
    if height != width:
        raise UserError(
            f"{workdir}: its model takes images of {height} x {width} pixels, but `resrep predict` crops squares; load "
            f"{report_path.parent}/model.h5 with Keras"
        )
    model = load_model(current_folder(report_path.parent) / "model.h5")
    scale = Normalization(pixels["mean"], pixels["std"], is_bgr=pixels["channel_order"] == "BGR")
    images = [_read(path, height, pixels["crop_fraction"]) for path in paths]
    outputs = model(scale(tf.stack(images)), training=False)
    if task == "multilabel":
        outputs = outputs if ends_in_sigmoid(model) else tf.sigmoid(outputs)
    else:
        outputs = tf.nn.softmax(outputs)
    probabilities = outputs.numpy()
    classes = usage.get("classes") or [f"class {number}" for number in range(probabilities.shape[1])]
    return [
        [(classes[index], float(of_image[index])) for index in of_image.argsort()[::-1][:num_best]]
        for of_image in probabilities
    ]


def _read(path: Path, image_size: int, crop_fraction: float) -> tf.Tensor:
    try:
        return center_crop(tf.io.read_file(str(path)), image_size, crop_fraction)
    except (tf.errors.OpError, OSError) as error:
        raise DataError(f"image {path}: cannot be read ({one_line(error)}); expected a JPEG, PNG, BMP or GIF") from None
