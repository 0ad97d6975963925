"""What somebody needs to use a model later: the pixels that it expects, its classes, and where it comes from."""

import datetime
import platform
import shlex
import sys
from importlib import metadata
from typing import Any

from resrep_dist.config import Config
from resrep_dist.data.source import ImageSource
from resrep_dist.version import __version__

_PACKAGES = ("tensorflow", "tensorflow-cpu", "tf-keras", "numpy")
_OUTPUTS = {
    "classification": "logits; a softmax makes probabilities of them",
    "multilabel": "one for each class: logits, of which a sigmoid makes probabilities, or those of the model's sigmoid",
    "segmentation": "logits for each pixel; a softmax over the last axis makes probabilities of them",
}
_OF_FILES = ("imagefolder", "tfrecord", "tfds")


def usage_of(config: Config, source: ImageSource) -> dict[str, Any]:
    """Describe how a model is used and what it was made from, as JSON values.

    Args:
        config: The configuration of its run.
        source: A data set of the run.

    Returns:
        `pixels`: `image_size` (height and width), `channel_order`, and `mean` and `std` for pixels from 0 to 255, None
        for images that are no such pixels; `classes`, the names in the order of the outputs, None if they have none;
        `task`; `outputs`; `versions`; `data`; `date`; `command`.
    """
    return {
        "pixels": _pixels(config, source),
        "task": config.task,
        "outputs": _OUTPUTS[config.task],
        "classes": list(source.classes) if hasattr(source, "classes") else None,
        "versions": {"resrep-dist": __version__, "python": platform.python_version(), **_versions()},
        "data": {"source": config.data.source, "path": config.data.path, "num_validation_images": len(source)},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
    }


def _pixels(config: Config, source: ImageSource) -> dict[str, Any]:
    # None for images that are used as they are, whatever the configuration says: floats from 0 to 1, for example.
    scale = source.pixel_scale()
    # Arrays of a program may be no squares.
    size = config.model.image_size
    shape = source.first_images(1).shape[1:3] if config.data.source == "arrays" else (size, size)
    is_file = config.data.source in _OF_FILES
    return {
        "image_size": list(shape),
        "range": [0, 255] if scale else None,
        "mean": [float(value) for value in scale.mean] if scale else None,
        "std": [float(value) for value in scale.std] if scale else None,
        "channel_order": "BGR" if scale and scale.is_bgr else "RGB",
        "layout": "[N, height, width, channels]",
        "crop_fraction": config.data.crop_fraction if is_file else 1.0,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass  # one of the two wheels of TensorFlow
    return found
