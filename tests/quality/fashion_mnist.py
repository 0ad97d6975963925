"""Fashion-MNIST at half its size as `fashion_mnist.npz`: `python -m tests.quality.fashion_mnist [--num-images 12000]`.

The files are those of Debian's package dataset-fashion-mnist (Xiao et al., arXiv:1708.07747): 60,000 training and
10,000 validation images of 28 px in ten classes. Four pixels become one, and only the first training images are kept,
so that a comparison over seeds is done within an hour or two on two cores.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")


def images(name: str) -> np.ndarray:
    """uint8 [N, 14, 14]."""
    pixels = np.frombuffer(gzip.decompress((FOLDER / name).read_bytes()), np.uint8, offset=16)
    return np.rint(pixels.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))).astype(np.uint8)


def labels(name: str) -> np.ndarray:
    """uint8 [N]."""
    return np.frombuffer(gzip.decompress((FOLDER / name).read_bytes()), np.uint8, offset=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=12_000, help="for training")
    parser.add_argument("--output", type=Path, default=Path("fashion_mnist.npz"))
    options = parser.parse_args()
    np.savez(
        options.output,
        x_train=images("train-images-idx3-ubyte.gz")[: options.num_images],
        y_train=labels("train-labels-idx1-ubyte.gz")[: options.num_images],
        x_test=images("t10k-images-idx3-ubyte.gz"),
        y_test=labels("t10k-labels-idx1-ubyte.gz"),
    )


if __name__ == "__main__":
    main()
