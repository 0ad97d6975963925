"""Fashion-MNIST as `fashion_mnist.npz`: `python -m tests.quality.fashion_mnist [--output FILE]`.

The files are those of Debian's package dataset-fashion-mnist (Xiao et al., arXiv:1708.07747): 60,000 training and
10,000 validation images of 28 px in ten classes.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")


def images(name: str) -> np.ndarray:
    """uint8 [N, 28, 28]."""
    return np.frombuffer(gzip.decompress((FOLDER / name).read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)


def labels(name: str) -> np.ndarray:
    """uint8 [N]."""
    return np.frombuffer(gzip.decompress((FOLDER / name).read_bytes()), np.uint8, offset=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("fashion_mnist.npz"))
    options = parser.parse_args()
    np.savez(
        options.output,
        x_train=images("train-images-idx3-ubyte.gz"),
        y_train=labels("train-labels-idx1-ubyte.gz"),
        x_test=images("t10k-images-idx3-ubyte.gz"),
        y_test=labels("t10k-labels-idx1-ubyte.gz"),
    )


if __name__ == "__main__":
    main()
