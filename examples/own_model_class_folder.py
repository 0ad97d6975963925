"""Prune your own Keras model on a folder of images that has one folder for each class.

    python examples/own_model_class_folder.py [FOLDER]

FOLDER holds ten classes as `train/<class>/` and `val/<class>/`; a new one is filled with scikit-learn's digits as PNG
files. Without FOLDER the program uses a temporary one, which it deletes at its end. It trains the model, prunes it to
60 % of its multiply-adds, merges the compactors and saves `slim.h5` into the folder. It prints the top-1 accuracy
before and after, the multiply-adds, the channels that each convolution keeps, and how closely the outputs of the saved
model agree with those of the trained one.

Takes about half a minute on 2 CPU cores. `horovodrun -np 2 python examples/own_model_class_folder.py FOLDER` runs it
on two ranks.
"""

import sys
import tempfile
from pathlib import Path

import resrep_dist  # before TensorFlow: it chooses Keras 2

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from tensorflow import keras

IMAGE_SIZE = 32


def write_digits(folder: Path) -> None:
    """Write the digits as PNG files, every fifth one for validation, unless the folder has images."""
    if (folder / "train").exists():
        return
    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        class_folder = folder / ("val" if index % 5 == 0 else "train") / str(label)
        class_folder.mkdir(parents=True, exist_ok=True)
        # The digits have 8 x 8 pixels with values from 0 to 16.
        pixels = np.kron(np.minimum(16 * image, 255).astype(np.uint8), np.ones((4, 4), np.uint8))
        tf.io.write_file(str(class_folder / f"{index}.png"), tf.io.encode_png(pixels[..., np.newaxis]))


def own_model(num_classes: int) -> keras.Model:
    """Any functional Keras model that returns logits; this one has four convolutions."""
    layers = keras.layers
    x = inputs = keras.Input([IMAGE_SIZE, IMAGE_SIZE, 3])
    for index, width in enumerate((16, 24, 32, 48)):
        x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False, name=f"conv{index}")(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x), name="own_model")


def configuration(folder: Path) -> resrep_dist.Config:
    """The same sections and keys as in a YAML file, which `load_config` would read."""
    return resrep_dist.build_config(
        {
            # A program that makes the model itself may call it what it likes.
            "model": {"name": "own_model", "num_classes": 10, "image_size": IMAGE_SIZE},
            "data": {
                "source": "imagefolder", "path": str(folder), "global_batch_size": 64, "augmentation": "shift",
                "crop_fraction": 1.0,
            },
            "base": {"num_epochs": 8, "learning_rate": 0.1, "warmup_epochs": 1},
            "train": {"num_epochs": 16, "learning_rate": 0.05},
            "prune": {
                "target_macs_fraction": 0.6, "lasso_strength": 0.01, "mask_start_epochs": 1, "mask_interval_steps": 10,
                "channels_per_update": 8,
            },
        }
    )  # fmt: skip


def count_macs(model: keras.Model) -> int:
    """Multiply-adds of one image."""
    graph = resrep_dist.trace(model)
    return graph.macs.total(graph.widths)


def merge_and_save(trainer: resrep_dist.Trainer, images: np.ndarray, path: Path) -> None:
    """Save the pruned model and print what is left of it."""
    slim, certificate = resrep_dist.merge(trainer.model, trainer.graph, images)
    resrep_dist.save_model(slim, path)
    print(f"multiply-adds: {trainer.graph.macs.total(trainer.graph.widths):,} before, {count_macs(slim):,} after")
    for name, channels in certificate.channels.items():
        print(f"{name}: {channels['kept']} of {channels['original']} channels")
    print(f"largest difference of the outputs: {certificate.max_relative_difference:.1e} of the largest output")
    print(f"saved: {path}")


def main(folder: Path) -> None:
    """Train, prune, merge and save."""
    cluster = resrep_dist.Cluster()  # before the model: it chooses the GPU of this rank
    # Rank 0 works, the other ranks wait.
    cluster.from_root(lambda: write_digits(folder))
    config = configuration(folder)
    keras.utils.set_random_seed(config.seed)
    train_data, validation_data = resrep_dist.load_sources(config.data, config.model)

    base = resrep_dist.Trainer(own_model(10), None, config, train_data, validation_data, cluster=cluster)
    base.run()

    graph = resrep_dist.trace(base.model)
    trainer = resrep_dist.Trainer(base.model, graph, config, train_data, validation_data, cluster=cluster)
    trainer.run()

    if cluster.is_root:
        print(f"top-1: {base.validation_top1:.2f} % before, {trainer.validation_top1:.2f} % after")
    cluster.from_root(lambda: merge_and_save(trainer, validation_data.first_images(256), folder / "slim.h5"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
