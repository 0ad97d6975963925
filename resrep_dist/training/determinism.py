"""The same bits in every run: TensorFlow's setting for it, and the layers that have no such operation."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from resrep_dist.config import TrainingConfig
from resrep_dist.errors import ConfigError, one_line

import tensorflow as tf

# Operations that raise an error on a GPU if all operations have to be deterministic, and what uses them.
_REFUSED = {
    "FusedBatchNormGrad": "frozen batch norm",
    "FusedBatchNormGradV2": "frozen batch norm",
    "FusedBatchNormGradV3": "frozen batch norm",
    "ResizeNearestNeighborGrad": "nearest-neighbor upsampling",
    "Dilation2DBackpropFilter": "dilation",
    "Dilation2DBackpropInput": "dilation",
    "Bincount": "bincount",
    "DenseBincount": "bincount",
    "AdjustContrastv2": "change of contrast",
    "CropAndResizeGradImage": "crop and resize",
    "CropAndResizeGradBoxes": "crop and resize",
}
# TensorFlow's, if a program has set none.
_DEFAULT_SEED = 87654321
_MAX_NAMES = 3
_MAX_REASON = 300


def enable_determinism(config: TrainingConfig, seed: int) -> None:
    """Let TensorFlow use deterministic operations only, if the configuration asks for it.

    Random operations then need a seed, so one is set if the program has set none.

    Args:
        config: How steps are computed.
        seed: The seed of the run.
    """
    if not config.deterministic:
        return
    # What TensorFlow would use for an operation with the seed 0.
    if tf.compat.v1.random.get_seed(0)[0] == _DEFAULT_SEED:
        tf.random.set_seed(seed)
    tf.config.experimental.enable_op_determinism()


def check_determinism(config: TrainingConfig, graph: tf.Graph, layers: Sequence[str]) -> None:
    """Check that all operations of a step can be deterministic on the device that computes it.

    XLA compiles its own operations, which are not checked.

    Args:
        config: How steps are computed.
        graph: The step.
        layers: Names of the model's layers.

    Raises:
        ConfigError: If the configuration asks for a deterministic step, and a layer has none on the GPU.
    """
    if not config.deterministic or config.xla or not tf.config.list_logical_devices("GPU"):
        return
    found: dict[str, str] = {}
    definition = graph.as_graph_def()
    # Loops and branches are functions of their own.
    for node in itertools.chain(definition.node, *(function.node_def for function in definition.library.function)):
        if node.op in _REFUSED and not ("BatchNorm" in node.op and node.attr["is_training"].b):
            name = next((part for part in reversed(node.name.split("/")) if part in layers), node.name)
            found.setdefault(name, _REFUSED[node.op])
    if found:
        names = [f"{name} ({reason})" for name, reason in found.items()]
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        raise ConfigError(
            "training.deterministic: received true, but on a GPU TensorFlow has no deterministic version of "
            f"{', '.join(names[:_MAX_NAMES])}{more}; set training.deterministic to false, or replace these layers"
        )


@contextlib.contextmanager
def clear_refusals(config: TrainingConfig) -> Iterator[None]:
    """Say which setting of a configuration TensorFlow refuses when it computes the first step.

    What it refuses depends on the card and on XLA, so `check_determinism` does not know all of it.

    Args:
        config: How steps are computed.

    Raises:
        ConfigError: If an operation is not deterministic although it has to be, or XLA cannot compile one.
    """
    try:
        yield
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError) as error:
        # Stack traces stand before and behind it.
        lines = [line.strip() for line in str(error.message).splitlines()]
        asked = {"determinis": config.deterministic and "deterministic", "unsupported operations": config.xla and "xla"}
        found = [(line, asked[word]) for line in lines for word in asked if word in line and asked[word]]
        if not found:
            raise
        reason, setting = one_line(found[0][0], _MAX_REASON), found[0][1]
        raise ConfigError(
            f"training.{setting}: received true, but TensorFlow says: {reason}; set training.{setting} to false"
        ) from None
