"""What labels say: which rows of 0 and 1 are classes, and which pixels of masks have none."""

from resrep_dist.errors import DataError

import numpy as np

NO_CLASS = 255
"""Value of the pixels of masks that have no class, as in Pascal VOC and Cityscapes."""


def require_numbers(labels: np.ndarray) -> None:
    """Check that labels are numbers: texts have no least one, and objects none that a checksum could be of.

    Args:
        labels: The labels.

    Raises:
        DataError: If they are not.
    """
    if labels.dtype.kind not in "biuf":
        raise DataError(
            f"labels of type {labels.dtype}, expected whole numbers, the classes by number; texts become these by "
            "np.unique(labels, return_inverse=True)[1], of both sets together, numbers by labels.astype(int)"
        )


def are_rows(labels: np.ndarray) -> bool:
    """Return whether labels are rows of 0 and 1, [N, number of classes], for more than one class.

    Args:
        labels: The labels.
    """
    return labels.ndim == 2 and labels.shape[1] > 1 and bool(((labels == 0) | (labels == 1)).all())


def are_one_hot(labels: np.ndarray) -> bool:
    """Return whether labels are one-hot, as Keras' `to_categorical` makes them: rows with a single 1.

    The rows of some images may be so by chance, so all sets of a data set have to be.

    Args:
        labels: The labels.
    """
    return are_rows(labels) and bool((np.count_nonzero(labels, axis=1) == 1).all())


def with_no_class(masks: np.ndarray, num_classes: int) -> np.ndarray:
    """Return masks in which -1 stands for no class, in place of 255, which is one only if there are more classes.

    Args:
        masks: Classes, [N, height, width].
        num_classes: Number of classes.

    Returns:
        The same array if it has no such pixels, otherwise a copy, of a type with negative numbers.
    """
    has_none = masks == NO_CLASS
    if num_classes > NO_CLASS or not has_none.any():
        return masks
    marked = masks.astype(np.promote_types(masks.dtype, np.int16))
    marked[has_none] = -1
    return marked
