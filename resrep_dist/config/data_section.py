"""The section `data` of a configuration."""

from typing import Annotated, Literal

from resrep_dist.config.normalization import ChannelStatistics, NormalizationName, check_normalization
from resrep_dist.config.schema import NotNegativeFloat, Positive

from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

# For each source its augmentations; the first one is the default.
_ON_ARRAYS = ("none", "shift", "pad_crop_flip")
_ON_FILES = ("resized_crop_flip", *_ON_ARRAYS)
_AUGMENTATIONS = {
    "arrays": _ON_ARRAYS,
    "digits": _ON_ARRAYS,
    "npz": _ON_ARRAYS,
    "synthetic": _ON_ARRAYS,
    "cifar10": ("pad_crop_flip", "none", "shift"),
    "cifar100": ("pad_crop_flip", "none", "shift"),
    "imagefolder": _ON_FILES,
    "tfrecord": _ON_FILES,
    "tfds": _ON_FILES,
}
_PATHS = {
    "imagefolder": "the folder that holds train/<class>/ and val/<class>/",
    "tfrecord": "the folder that holds train-00000-of-01024 and validation-00000-of-00128",
    "tfds": "the data_dir that holds the prepared set",
    "cifar10": "the folder or .tar.gz of the binary version",
    "cifar100": "the folder or .tar.gz of the binary version",
    "npz": "a file with x_train, y_train, x_test and y_test",
}


@dataclass(frozen=True, config=_STRICT)
class RandAugmentConfig:
    """RandAugment: random operations on each training image, such as rotation, contrast and posterizing."""

    num_operations: Positive = 2
    """Number of operations on each image, drawn from 14: N in the paper."""
    magnitude: Annotated[int, Ge(0), Le(30)] = 9
    """How strong they are, from 0 to 30: M in the paper."""


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """The data set, batches and augmentation."""

    source: Literal["digits", "imagefolder", "tfrecord", "tfds", "cifar10", "cifar100", "npz", "synthetic", "arrays"]
    """Kind of data set. `digits`: part of scikit-learn. `imagefolder`: image files in a folder per class. `tfrecord`:
    ImageNet's TFRecord shards. `tfds`: a set prepared by TensorFlow Datasets. `cifar10`, `cifar100`: the binary
    version. `npz`: arrays in a file. `synthetic`: noise. `arrays`: arrays that a Python program gives to the
    Trainer."""
    global_batch_size: Positive
    """Number of samples per training step, on all ranks together."""
    path: str | None = None
    """Folder or file of the data. None for `digits`, `synthetic` and `arrays`, which read no files."""
    name: str | None = None
    """Name of the set of TensorFlow Datasets, as in `imagenet2012` or `mnist:3.0.1`. None unless `source` is `tfds`."""
    augmentation: Literal["default", "none", "shift", "pad_crop_flip", "resized_crop_flip"] = "default"
    """Augmentation of training images. `shift`: translation by up to an eighth of the image, filled with zeros.
    `pad_crop_flip`: the same, and half of the images mirrored. `resized_crop_flip`: a random window, resized, and half
    of the images mirrored. `default`: the usual one for the source; `config.yaml` of the run has its name."""
    rand_augment: RandAugmentConfig | None = None
    """RandAugment of the training images, after `augmentation`. None for none."""
    mixup_alpha: NotNegativeFloat = 0.0
    """mixup: each training image is averaged with another one, and so are their labels, with a share from
    Beta(mixup_alpha, mixup_alpha); 0.2 is usual. 0 for none."""
    cutmix_alpha: NotNegativeFloat = 0.0
    """CutMix: a window of each training image is that of another one, with a share from Beta(cutmix_alpha,
    cutmix_alpha); 1 is usual. 0 for none. With `mixup_alpha` too, each image takes one of the two at random."""
    crop_fraction: Annotated[float, Gt(0), Le(1)] = 0.875
    """For evaluation the short side of image files is resized to image_size / crop_fraction, and the center is
    cropped."""
    normalization: NormalizationName | ChannelStatistics = "default"
    """Scale of the pixels that the model receives. `imagenet`: minus ImageNet's mean, divided by its deviation.
    `zero_one`: from 0 to 1. `minus_one_one`: from -1 to 1. `caffe`: blue, green, red, minus ImageNet's mean. `none`:
    from 0 to 255, for a model that scales its input itself. `data_set`: by mean and deviation of the training set, or
    floating-point images as they are. Or `mean` and `std` of red, green and blue, in the scale from 0 to 255.
    `default`: for a model of keras.applications that of its `preprocess_input`, otherwise `imagenet` for image files
    and `data_set` for the rest; `config.yaml` of the run has its name."""
    index_folder: str | None = None
    """Folder in which `tfrecord` and `tfds` keep the offsets of all records. None to scan the shards at every start."""
    num_samples: Positive = 51_200
    """Number of training samples of the source `synthetic`."""
    evaluation_batch_size: Positive = 256
    """Number of samples per evaluation step on each rank."""

    def __post_init__(self) -> None:
        if self.path is None and self.source in _PATHS:
            raise ValueError(f"data.path: missing; data.source {self.source} needs {_PATHS[self.source]}")
        if self.path is not None and self.source not in _PATHS:
            raise ValueError(
                f"data.path: received {self.path!r}, but data.source {self.source} reads no files; remove it"
            )
        if (self.name is None) == (self.source == "tfds"):
            fix = "give the set's name, as in mnist" if self.name is None else "only tfds has a name; remove it"
            raise ValueError(f"data.name: received {self.name!r} with data.source {self.source}; {fix}")
        known = _AUGMENTATIONS[self.source]
        if self.augmentation == "default":
            object.__setattr__(self, "augmentation", known[0])
        if self.augmentation not in known:
            raise ValueError(
                f"data.augmentation: received {self.augmentation!r}, but data.source {self.source} "
                f"supports {', '.join(known)}"
            )
        check_normalization(self.source, self.normalization)
