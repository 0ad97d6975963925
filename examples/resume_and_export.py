"""Stop a run in the middle, resume it, and export the pruned model to TFLite.

    python examples/resume_and_export.py [FOLDER]

The program prunes a small network on scikit-learn's digits with checkpoints in FOLDER, a new folder (default: a
temporary one, deleted at the end). In the middle it sends itself SIGTERM, as a batch system does before the time is
up; a file named `stop` in the folder of a run does the same. Then it builds everything again, as a new process would,
and goes on from the checkpoint. A run without the stop follows, for comparison. At the end the merged model is
exported to `FOLDER/model.tflite`.

It prints the step at which the run stopped, whether both runs ended with the same weights, bit for bit, and how
closely the outputs of the TFLite file agree with those of the Keras model. Takes about half a minute on 2 CPU cores.
"""

import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import resrep_dist  # before TensorFlow: it chooses Keras 2
from resrep_dist.errors import StoppedError

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from tensorflow import keras

CONFIG = resrep_dist.build_config(
    {
        "model": {"name": "small_network", "num_classes": 10, "image_size": 8},
        "data": {"source": "arrays", "global_batch_size": 64},
        "base": {"num_epochs": 6, "learning_rate": 0.1, "warmup_epochs": 1},
        "train": {"num_epochs": 20, "learning_rate": 0.05},
        "prune": {
            "target_macs_fraction": 0.6, "lasso_strength": 0.02, "mask_start_epochs": 1, "mask_interval_steps": 10,
            "channels_per_update": 8,
        },
        "checkpoint": {"interval_steps": 50},
    }
)  # fmt: skip


def load_data() -> tuple[resrep_dist.Source, resrep_dist.Source]:
    """The digits in memory: a training set and 360 images for validation."""
    digits = load_digits()
    images, labels = (digits.images[..., np.newaxis] / 16).astype(np.float32), digits.target.astype(np.int64)
    is_validation = np.arange(len(labels)) % 5 == 0
    return (
        resrep_dist.Source(images[~is_validation], labels[~is_validation], num_classes=10),
        resrep_dist.Source(images[is_validation], labels[is_validation], num_classes=10),
    )


def small_network() -> keras.Model:
    """Three convolutions; the model returns logits."""
    layers = keras.layers
    x = inputs = keras.Input([8, 8, 1])
    for index, (width, strides) in enumerate(((16, 1), (32, 2), (32, 2))):
        x = layers.Conv2D(width, 3, strides, padding="same", use_bias=False, name=f"conv{index}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"bn{index}")(x)
        x = layers.ReLU(name=f"relu{index}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="small_network")


def make_trainer(workdir: Path, cluster: resrep_dist.Cluster) -> resrep_dist.Trainer:
    """Train the base model, or read it from its last checkpoint in `workdir`; then prepare its pruning."""
    keras.utils.set_random_seed(CONFIG.seed)
    data = load_data()
    base = resrep_dist.Trainer(small_network(), None, CONFIG, *data, cluster=cluster, workdir=workdir)
    base.run()
    graph = resrep_dist.trace(base.model)
    return resrep_dist.Trainer(base.model, graph, CONFIG, *data, cluster=cluster, workdir=workdir)


def run_until_stopped(trainer: resrep_dist.Trainer, checkpoint: Path) -> None:
    """Train until the checkpoint is there, then stop by SIGTERM."""

    def send_signal() -> None:
        while not checkpoint.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send_signal, daemon=True).start()
    try:
        trainer.run()
    except StoppedError as error:
        print(f"first run: {error}")
    else:
        raise RuntimeError("the run was over before the signal came; give it more steps")


def export(trainer: resrep_dist.Trainer, folder: Path) -> None:
    """Merge the compactors and write a TFLite file; both steps compare the outputs and refuse a difference."""
    images = load_data()[1].images
    slim, certificate = resrep_dist.merge(trainer.model, trainer.graph, images)
    print(f"merged: largest difference {certificate.max_relative_difference:.1e} of the largest output")
    exported = resrep_dist.export_model(slim, "tflite", folder, images, tolerance=1e-4)
    print(f"TFLite: largest difference {exported.max_relative_difference:.1e} of the largest output")
    print(f"the same class for {100 * exported.argmax_agreement:.1f} % of {exported.num_images} images")
    print(f"saved: {exported.path}")


def main(folder: Path) -> None:
    """Stop, resume, compare, export."""
    tf.config.experimental.enable_op_determinism()
    cluster = resrep_dist.Cluster()
    run_until_stopped(make_trainer(folder / "stopped", cluster), folder / "stopped" / "checkpoints" / "step-00000100")

    resumed = make_trainer(folder / "stopped", cluster)
    resumed.run()
    undisturbed = make_trainer(folder / "undisturbed", cluster)
    undisturbed.run()
    pairs = zip(resumed.model.get_weights(), undisturbed.model.get_weights(), strict=True)
    is_same = all(np.array_equal(one, other) for one, other in pairs)
    print(f"resumed and undisturbed run have {'the same' if is_same else 'different'} weights at step {resumed.step}")
    export(resumed, folder)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
