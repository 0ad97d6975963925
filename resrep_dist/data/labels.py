"""Which labels that are rows of 0 and 1 are classes, and which say yes or no for each class."""

import numpy as np


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
