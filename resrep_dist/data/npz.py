"""Arrays in an .npz file with the names of Keras' data sets: `x_train`, `y_train`, `x_test`, `y_test`."""

import zipfile
from pathlib import Path

from resrep_dist.data.labels import NO_CLASS, are_one_hot, with_no_class
from resrep_dist.data.normalization import Normalization
from resrep_dist.data.source import Source, require_finite
from resrep_dist.errors import DataError

import numpy as np

_NAMES = ("x_train", "y_train", "x_test", "y_test")


def npz(
    path: Path, num_classes: int, normalization: Normalization | None = None, task: str = "classification"
) -> tuple[Source, Source]:
    """Read images [N, height, width] or [N, height, width, 1 or 3] and labels.

    Labels are whole numbers [N] or [N, 1] or one-hot rows [N, num_classes], for `multilabel` 0 or 1 [N, num_classes],
    and for `segmentation` whole numbers [N, height, width], where 255 or a negative number stands for no class.

    Integer images are normalized, by default by mean and standard deviation of the training set's channels.
    Floating-point images are used as they are. A single channel is repeated three times.

    Args:
        path: The file; pickled arrays in it are refused.
        num_classes: Number of classes.
        normalization: Scale of integer images, from 0 to 255. None for mean and standard deviation of the training set.
        task: What the labels say; see `Config.task`.

    Returns:
        Training set and validation set.

    Raises:
        DataError: If the file cannot be read, or an array is missing, of another shape or type, or has other labels.
    """
    arrays = _read(path)
    train, test = (_images(path, name, arrays[name]) for name in ("x_train", "x_test"))
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"data.path {path}: x_train holds images of {train.shape[1:]}, x_test of {test.shape[1:]}")
    _require_one_scale(path, train, test)
    scale = _scale(path, train, normalization)
    if scale is not None and scale.is_bgr:
        train, test = train[..., ::-1], test[..., ::-1]
    mean, std = (scale.mean, scale.std) if scale else (None, None)
    read = {"multilabel": _yes_or_no, "segmentation": _masks}.get(task, _labels)
    labels = [read(path, name, arrays[name], num_classes) for name in ("y_train", "y_test")]
    if labels[0].shape[1:] != labels[1].shape[1:]:
        raise DataError(
            f"data.path {path}: y_train holds masks of {labels[0].shape[1:]}, y_test of {labels[1].shape[1:]}; "
            "expected one size"
        )
    for name, images, of_images in (("train", train, labels[0]), ("test", test, labels[1])):
        if len(images) != len(of_images):
            raise DataError(
                f"data.path {path}: expected as many images as labels, received {len(images)}, {len(of_images)} in "
                f"x_{name} and y_{name}"
            )
    return (
        Source(train, labels[0], num_classes, mean, std, scale),
        Source(test, labels[1], num_classes, mean, std, scale),
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in _NAMES}
    except KeyError:
        raise DataError(f"data.path {path}: expected arrays {', '.join(_NAMES)}; one is missing") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise DataError(f"data.path {path}: cannot be read as .npz without pickle ({error})") from None


def _scale(path: Path, train: np.ndarray, normalization: Normalization | None) -> Normalization | None:
    """Return what integer images are normalized by; None for floating-point images, which are used as they are."""
    if not np.issubdtype(train.dtype, np.integer):
        if normalization is not None:
            _require_as_they_are(path, normalization)
        return None
    if normalization is not None:
        return normalization
    # A channel that is constant becomes 0 instead of NaN.
    std = np.maximum(train.std((0, 1, 2), np.float64), 1e-6).tolist()
    return Normalization(train.mean((0, 1, 2), np.float64).tolist(), std)


def _images(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    if len(images) == 0:
        raise DataError(
            f"data.path {path}: {name} is empty; a training set and a validation set with at least one image are needed"
        )
    if images.ndim == 3:
        images = images[..., np.newaxis]
    is_number = np.issubdtype(images.dtype, np.integer) or np.issubdtype(images.dtype, np.floating)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not is_number:
        raise DataError(
            f"data.path {path}: {name} is {images.dtype} {list(images.shape)}, expected numbers "
            "[N, height, width] or [N, height, width, 1 or 3]"
        )
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
        require_finite(images, f"data.path {path}: {name}")
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _require_one_scale(path: Path, train: np.ndarray, test: np.ndarray) -> None:
    """Check that both sets have values of one kind and scale, since they are normalized alike."""
    kinds = ["whole numbers" if np.issubdtype(images.dtype, np.integer) else "fractions" for images in (train, test)]
    largest = [float(np.max(np.abs(images), initial=0.0)) for images in (train, test)]
    # Values from 0 to 1 beside values from 0 to 255.
    is_other_scale = min(largest) <= 1.0 and max(largest) > 100.0
    if kinds[0] != kinds[1] or is_other_scale:
        raise DataError(
            f"data.path {path}: x_train holds {train.dtype} up to {largest[0]:g}, x_test {test.dtype} up to "
            f"{largest[1]:g}; expected the same type and scale in both, as both are normalized alike; save them again"
        )


def _require_as_they_are(path: Path, normalization: Normalization) -> None:
    if any(normalization.mean) or any(value != 1.0 for value in normalization.std):
        raise DataError(
            f"data.path {path}: x_train holds floating-point images, which are used as they are; remove "
            "data.normalization, or save the pixels as uint8 from 0 to 255"
        )


def _other_task(labels: np.ndarray) -> str:
    return {2: "; for several classes of one image set task: multilabel", 3: "; for masks set task: segmentation"}.get(
        labels.ndim, ""
    )


def _yes_or_no(path: Path, name: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    labels = labels[:, np.newaxis] if labels.ndim == 1 and num_classes == 1 else labels
    if labels.ndim != 2 or labels.shape[1] != num_classes or not np.isin(labels, (0, 1)).all():
        raise DataError(
            f"data.path {path}: {name} is {labels.dtype} {list(labels.shape)}, expected 0 or 1 for each class "
            f"[N, {num_classes}] with task multilabel and model.num_classes {num_classes}"
        )
    return labels.astype(np.int64)


def _masks(path: Path, name: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    labels = labels[..., 0] if labels.ndim == 4 and labels.shape[-1] == 1 else labels
    if labels.ndim != 3 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"data.path {path}: {name} is {labels.dtype} {list(labels.shape)}, expected whole numbers "
            "[N, height, width] with task segmentation"
        )
    labels = with_no_class(labels.astype(np.int64), num_classes)
    if labels.max() >= num_classes:
        raise DataError(
            f"data.path {path}: {name} has labels up to {labels.max()}, expected 0 to {num_classes - 1} "
            f"(model.num_classes), or {NO_CLASS} for pixels without a class"
        )
    return np.maximum(labels, -1)


def _labels(path: Path, name: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    labels = labels.reshape(-1) if labels.shape[1:] == (1,) else labels
    if are_one_hot(labels):
        if labels.shape[1] != num_classes:
            raise DataError(
                f"data.path {path}: {name} is one-hot for {labels.shape[1]} classes, expected {num_classes} "
                "(model.num_classes); make them equal"
            )
        return labels.argmax(axis=1)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"data.path {path}: {name} is {labels.dtype} {list(labels.shape)}, expected whole numbers [N], such as "
            f"those of y.astype(int), or one-hot rows{_other_task(labels)}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise DataError(
            f"data.path {path}: {name} has labels {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1} "
            "(model.num_classes); the first class is 0"
        )
    return labels.astype(np.int64)
