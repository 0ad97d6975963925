"""How the values of pixels are scaled: the choices, and the default for a data source and a model."""

import re
from typing import Annotated, Literal, get_args

from annotated_types import Gt
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

NormalizationName = Literal["default", "data_set", "imagenet", "zero_one", "minus_one_one", "caffe", "none"]
"""Names of the choices."""


@dataclass(frozen=True, config=_STRICT)
class ChannelStatistics:
    """Mean and standard deviation of each channel, red, green and blue, of pixels from 0 to 255."""

    mean: tuple[float, ...]
    """Mean of each channel; 3 numbers from 0 to 255."""
    std: tuple[Annotated[float, Gt(0)], ...]
    """Standard deviation of each channel; 3 numbers."""

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise ValueError(
                    f"data.normalization.{name}: received {len(values)} numbers, expected 3: for red, green and blue, "
                    "in the scale of pixels from 0 to 255"
                )


# Sources whose pixels are from 0 to 255, and which can therefore be scaled in any way.
_OF_FILES = ("imagefolder", "tfrecord", "tfds")
_OF_PIXELS = (*_OF_FILES, "cifar10", "cifar100", "npz", "synthetic")
# What the models of keras.applications expect, by their `preprocess_input`; the first pattern that fits counts.
_FAMILIES = (
    (r"ResNetRS|EfficientNet|MobileNetV3|ConvNeXt|RegNet", "none"),
    (r"ResNet\d+V2|MobileNet|Inception|Xception|NASNet", "minus_one_one"),
    (r"ResNet|VGG", "caffe"),
    (r"DenseNet", "imagenet"),
)


def default_normalization(source: str, model_name: str) -> str:
    """Return the normalization that a source and a model have by default.

    Args:
        source: As in `DataConfig.source`.
        model_name: As in `ModelConfig.name`. The models of keras.applications have the scale of their
            `preprocess_input`; those that contain it get pixels as they are.
    """
    if source in (*_OF_FILES, "cifar10", "cifar100"):
        kind, _, name = model_name.partition(":")
        family = next((scale for pattern, scale in _FAMILIES if re.match(pattern, name)), None)
        if kind == "keras" and family is not None:
            return family
    return "imagenet" if source in _OF_FILES else "data_set"


def check_normalization(source: str, normalization: "str | ChannelStatistics") -> None:
    """Check that the images of a source can be normalized in this way.

    Args:
        source: As in `DataConfig.source`.
        normalization: As in `DataConfig.normalization`.

    Raises:
        ValueError: If they cannot.
    """
    if source in _OF_FILES and normalization == "data_set":
        raise ValueError(
            f"data.normalization: received 'data_set', but data.source {source} does not know the mean of its images; "
            f"expected one of {', '.join(sorted({*get_args(NormalizationName)} - {'data_set'}))}, or mean and std"
        )
    if source not in _OF_PIXELS and normalization not in ("default", "data_set"):
        raise ValueError(
            f"data.normalization: received {normalization!r}, but the images of data.source {source} are not pixels "
            "from 0 to 255 and are used as they are; remove it"
        )
