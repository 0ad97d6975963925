"""Small networks and configurations for the tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import Config, build_config
from resrep_dist.data.loading import load_sources
from resrep_dist.data.source import ImageSource, Source
from resrep_dist.graph import Graph
from resrep_dist.layers.insertion import compactors_of, insert_compactors
from resrep_dist.models.mobilenet import mobilenet_v1
from resrep_dist.models.resnet_cifar import cifar_resnet
from resrep_dist.pruning.optimizer import ResRepOptimizer

import numpy as np
from tensorflow import keras

DIGITS_CONFIG = Path(__file__).parents[1] / "configs" / "digits_resnet20.yaml"


def small_network(
    seed: int = 0, image_size: int = 16, freeze_batch_norm: bool = False, num_classes: int = 10
) -> keras.Model:
    """Three convolutions with batch norm and a dense layer; the first two and the last can be pruned."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    x = inputs = keras.Input([image_size, image_size, 3])
    for index, width in enumerate((8, 12, 16)):
        x = layers.Conv2D(width, 3, 2, "same", use_bias=False, name=f"conv{index}")(x)
        x = layers.BatchNormalization(name=f"bn{index}", trainable=not freeze_batch_norm)(x)
        x = layers.ReLU(name=f"relu{index}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="small")


def small_classifier(image_size: int, num_classes: int) -> keras.Model:
    """The same for a configuration: `python:tests.networks:small_classifier`."""
    assert num_classes == 10
    return small_network(image_size=image_size)


def grouped_classifier(image_size: int, num_classes: int) -> keras.Model:
    """Two grouped convolutions and a dense layer."""
    layers = keras.layers
    x = inputs = keras.Input([image_size, image_size, 3])
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, 2, use_bias=False, name="conv0")(x)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(32, 3, groups=4, use_bias=False, name="conv1")(x)))
    return keras.Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling2D()(x)))


def small_resnet(image_size: int, num_classes: int) -> keras.Model:
    """One residual block in each stage, so that it is traced in a third of a ResNet-20's time."""
    return cifar_resnet(8, image_size, num_classes)


def small_mobilenet(image_size: int, num_classes: int) -> keras.Model:
    """MobileNet-v1 at a quarter of its width: 1,250 prunable channels in place of 5,000."""
    return mobilenet_v1(image_size, num_classes, width_multiplier=0.25)


def label_network(image_size: int, num_classes: int) -> keras.Model:
    """Two convolutions and a sigmoid for each class: `task: multilabel`."""
    layers = keras.layers
    x = inputs = keras.Input([image_size, image_size, 3])
    for index, width in enumerate((8, 12)):
        x = layers.Conv2D(width, 3, 2, "same", use_bias=False, name=f"conv{index}")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name=f"bn{index}")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes, "sigmoid", name="labels")(x), name="labels")


def pixel_network(image_size: int, num_classes: int) -> keras.Model:
    """One step down, one up, with a skip connection, and a softmax for each pixel: `task: segmentation`."""
    layers = keras.layers
    x = inputs = keras.Input([image_size, image_size, 3])
    x = skip = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv0")(x)
    x = layers.Conv2D(12, 3, 2, "same", use_bias=False, name="conv1")(x)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name="bn1")(x))
    x = layers.Conv2DTranspose(8, 2, 2, activation="relu", name="up")(x)
    x = layers.Concatenate()([skip, x])
    return keras.Model(inputs, layers.Conv2D(num_classes, 1, activation="softmax", name="classes")(x), name="pixels")


def classifier_with(between: Callable[[Any], Any]) -> keras.Model:
    """Two convolutions that can be pruned, and something between the second one and the end."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = inputs = keras.Input([16, 16, 3])
    for number in range(2):
        x = layers.Conv2D(8, 3, 2, name=f"conv{number}")(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"bn{number}")(x))
    x = between(x)
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))
    randomise(model)
    return model


def randomise(model: keras.Model, seed: int = 0) -> None:
    """Give every weight a random value, so that nothing is right by being zero or one."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name.endswith("mask:0"):
            continue
        noise = random.normal(size=weight.shape)
        weight.assign(1.0 + 0.2 * np.tanh(noise) if "variance" in weight.name else weight.numpy() + 0.1 * noise)


def with_dead_channels(model: keras.Model, graph: Graph, share: float = 0.5, seed: int = 0) -> keras.Model:
    """The model with random compactors of which `share` of the channels are dead."""
    random = np.random.default_rng(seed)
    pruned = insert_compactors(model, graph)
    for group in graph.groups:
        mask = random.uniform(size=group.width) >= share
        mask[random.integers(group.width)] = True
        of_channels = np.tile(mask, group.num_parts)
        for layer in group.layers:
            compactor = pruned.get_layer(layer.compactor)
            noise = random.normal(0.0, 0.3 / np.sqrt(group.width), compactor.kernel.shape)
            compactor.kernel.assign((compactor.kernel.numpy() + noise) * of_channels)
            compactor.mask.assign(of_channels.astype(np.float32))
    return pruned


def sources_of(config: Config) -> tuple[ImageSource, ImageSource]:
    """The training set and the validation set of a configuration."""
    return load_sources(config.data, config.model)


def train_state(pruned: keras.Model, graph: Graph) -> TrainState:
    """The state of a run with this model, before its first step."""
    return TrainState(pruned, ResRepOptimizer(0.01, compactors_of(pruned, graph)))


def random_source(num_samples: int = 320, image_size: int = 16, seed: int = 0) -> Source:
    random = np.random.default_rng(seed)
    images = random.normal(size=(num_samples, image_size, image_size, 3)).astype(np.float32)
    return Source(images, random.integers(0, 10, num_samples), 10)


def shrinking_config(mode: str = "exact", weight_average_decay: float | None = None, **training: Any) -> Config:
    """150 steps in which `small_network` loses channels by step 100; a checkpoint every 10 steps."""
    return small_config(
        train={"num_epochs": 15, "weight_average_decay": weight_average_decay},
        prune={
            "target_macs_fraction": 0.6,
            "channels_per_update": 8,
            "lasso_strength": 0.05,
            "mask_stop_fraction": 0.6,
        },
        shrink={"mode": mode, "min_saved_macs_fraction": 0.04, "num_calibration_batches": 2},
        checkpoint={"interval_steps": 10, "num_kept": 100},
        training=training,
    )


def small_config(**changes: Any) -> Config:
    """Some 60 steps of pruning on 320 samples in batches of 32; masks every 10 steps from step 10 on."""
    document: dict[str, Any] = {
        "model": {"name": "python:tests.networks:small_resnet", "num_classes": 10, "image_size": 16},
        "data": {"source": "digits", "global_batch_size": 32},
        "base": {"num_epochs": 1, "learning_rate": 0.05},
        "train": {"num_epochs": 6, "learning_rate": 0.02},
        "prune": {
            "target_macs_fraction": 0.5,
            "lasso_strength": 0.02,
            "mask_start_epochs": 1,
            "mask_interval_steps": 10,
            "channels_per_update": 4,
            # Noise has no better base than one that guesses.
            "min_base_top1": 0,
            "mask_stop_fraction": 0.9,
        },
        "logging": {"interval_steps": 10},
        # However few steps are left.
        "shrink": {"min_saved_steps": 0},
    }
    for section, values in changes.items():
        document[section] = {**document.get(section, {}), **values} if isinstance(values, dict) else values
    return build_config(document)


def convolution(x, width, name, activation=True):
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name=name)(x)
    x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if activation else x


def branching_network():
    """Two branches side by side, two residual additions, pixels flattened into a dense layer."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input([16, 16, 3])
    small = keras.layers.MaxPooling2D(4)(inputs)
    x = keras.layers.Concatenate(name="side_by_side")([convolution(small, 8, "left"), convolution(small, 6, "right")])
    x = convolution(x, 10, "stem")
    for block in ("first", "second"):
        y = convolution(convolution(x, 8, f"{block}_in"), 10, f"{block}_out", activation=False)
        x = keras.layers.ReLU(name=f"{block}_relu")(keras.layers.Add(name=f"{block}_add")([x, y]))
    x = keras.layers.Flatten(name="pixels")(keras.layers.MaxPooling2D(2)(x))
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x), name="branching")


def grouped_network():
    """Convolutions of two and of four groups; the first divides its channels for them."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input([16, 16, 3])
    x = convolution(keras.layers.MaxPooling2D(2)(inputs), 16, "conv")
    for number, groups in enumerate((2, 4)):
        x = keras.layers.Conv2D(16, 3, padding="same", groups=groups, use_bias=False, name=f"grouped{number}")(x)
        x = keras.layers.ReLU(name=f"relu{number}")(keras.layers.BatchNormalization(name=f"bn{number}")(x))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x), name="grouped")
