"""Opens the data source that a configuration names."""

from collections.abc import Callable
from pathlib import Path

from resrep_dist.config import DataConfig, ModelConfig
from resrep_dist.data.cifar import cifar10, cifar100
from resrep_dist.data.digits import digits
from resrep_dist.data.imagefolder import image_folders
from resrep_dist.data.normalization import IMAGENET, normalization_of
from resrep_dist.data.npz import npz
from resrep_dist.data.source import ImageSource, Source
from resrep_dist.data.synthetic import synthetic
from resrep_dist.data.tfds import prepared_set
from resrep_dist.data.tfrecord import imagenet_records
from resrep_dist.errors import ConfigError


def load_sources(data: DataConfig, model: ModelConfig, task: str = "classification") -> tuple[ImageSource, ImageSource]:
    """Open the training set and the validation set that a configuration names.

    Args:
        data: The section `data`.
        model: The section `model`.
        task: What the labels say; see `Config.task`.

    Raises:
        DataError: If data is missing or damaged, as far as this is seen without reading all of it.
        ConfigError: If the images are in memory and do not have the model's size, or `data.source` is `arrays`.
    """
    if data.source == "arrays":
        raise ConfigError(
            "data.source: received 'arrays', which a Python program gives to the Trainer; "
            "for the command line save them as .npz and use the source npz"
        )
    path = Path(data.path or "")
    index_folder = Path(data.index_folder) if data.index_folder else None
    crop = (model.image_size, data.crop_fraction)
    own = normalization_of(data.normalization)
    scale = own or IMAGENET
    sources: dict[str, Callable[[], tuple[ImageSource, ImageSource]]] = {
        "digits": lambda: digits(model.image_size),
        "imagefolder": lambda: image_folders(path, *crop, scale),
        "tfrecord": lambda: imagenet_records(path, model.num_classes, *crop, index_folder, scale),
        "tfds": lambda: prepared_set(data.name or "", path, *crop, index_folder, scale),
        "cifar10": lambda: cifar10(path, own),
        "cifar100": lambda: cifar100(path, own),
        "npz": lambda: npz(path, model.num_classes, own, task),
        "synthetic": lambda: synthetic(data.num_samples, model.num_classes, model.image_size, own),
    }
    train, validation = sources[data.source]()
    _check_image_size(train, data, model)
    return train, validation


def _check_image_size(source: ImageSource, data: DataConfig, model: ModelConfig) -> None:
    if isinstance(source, Source) and source.images.shape[1:3] != (model.image_size,) * 2:
        height, width = source.images.shape[1:3]
        fix = f"set model.image_size: {height}, and give a model of that size"
        if height != width:
            fix = "expected squares; images that are none are pruned in a program, by resrep_dist.prune"
        raise ConfigError(
            f"model.image_size: received {model.image_size}, but data.source {data.source} "
            f"holds images of {height} x {width} pixels; {fix}"
        )
