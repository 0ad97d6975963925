"""Prune on several processes with Horovod.

    horovodrun -np 2 python examples/two_ranks.py [FOLDER]

Every rank runs this program. The ranks share each global batch; gradients, row norms and batch-norm statistics are
summed in a few collectives a step. FOLDER gets checkpoints and curves (default: none are written); the same command
resumes from there, with any number of ranks. The program prints on each rank its share of a batch and its weights' sum,
which is the same on all of them, then on rank 0 the accuracy, the multiply-adds and the difference of the outputs.

Takes about half a minute with 2 ranks on 2 CPU cores. `python examples/two_ranks.py` runs it on one.
"""

import sys
from pathlib import Path

import resrep_dist  # before TensorFlow: it chooses Keras 2

import numpy as np
from sklearn.datasets import load_digits
from tensorflow import keras

GLOBAL_BATCH_SIZE = 64


def load_data() -> tuple[resrep_dist.Source, resrep_dist.Source]:
    """The digits in memory: a training set and 360 images for validation. Each rank holds all of them."""
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
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)), name="small_network")


def configuration() -> resrep_dist.Config:
    """The batch size is that of all ranks together, so nothing here depends on their number."""
    return resrep_dist.build_config(
        {
            "model": {"name": "small_network", "num_classes": 10, "image_size": 8},
            "data": {"source": "arrays", "global_batch_size": GLOBAL_BATCH_SIZE},
            "base": {"num_epochs": 8, "learning_rate": 0.1, "warmup_epochs": 1},
            "train": {"num_epochs": 20, "learning_rate": 0.05},
            "prune": {
                "target_macs_fraction": 0.5, "lasso_strength": 0.01, "mask_start_epochs": 1, "mask_interval_steps": 10,
                "channels_per_update": 8,
            },
            "checkpoint": {"interval_steps": 100},
        }
    )  # fmt: skip


def accuracy(model: keras.Model, source: resrep_dist.Source) -> float:
    """Percent."""
    return 100 * float(np.mean(model.predict(source.images, verbose=0).argmax(-1) == source.labels))


def merge_and_print(base: keras.Model, trainer: resrep_dist.Trainer, validation: resrep_dist.Source) -> None:
    """Merge the compactors and say what is left of the model."""
    slim, certificate = resrep_dist.merge(trainer.model, trainer.graph, validation.images)
    before, after = trainer.graph, resrep_dist.trace(slim)
    print(f"top-1: {accuracy(base, validation):.2f} % before, {accuracy(slim, validation):.2f} % after")
    print(f"multiply-adds: {before.macs.total(before.widths):,} before, {after.macs.total(after.widths):,} after")
    print(f"largest difference of the outputs: {certificate.max_relative_difference:.1e} of the largest output")


def main(workdir: Path | None) -> None:
    """What every rank does; it calls the same collectives in the same order as the others."""
    cluster = resrep_dist.Cluster()  # before the model: it starts Horovod and chooses the GPU of this rank
    config = configuration()
    keras.utils.set_random_seed(config.seed)
    data = load_data()

    base = resrep_dist.Trainer(small_network(), None, config, *data, cluster=cluster, workdir=workdir)
    base.run()
    graph = resrep_dist.trace(base.model)
    trainer = resrep_dist.Trainer(base.model, graph, config, *data, cluster=cluster, workdir=workdir)
    trainer.run()

    total = sum(float(np.abs(weight).sum()) for weight in trainer.model.get_weights())
    share = GLOBAL_BATCH_SIZE // cluster.size
    print(f"rank {cluster.rank} of {cluster.size}: {share} images a step, sum of the weights {total:.6f}")
    # Rank 0 merges, the others wait.
    cluster.from_root(lambda: merge_and_print(base.model, trainer, data[1]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
