"""Which classification models of keras.applications can be pruned: one of each family, with random weights.

    python -m tests.quality.coverage [--models ResNet50 MobileNet] [--output tests/quality/coverage.md]

Every model is built small, traced with and without residual groups, given compactors, random numbers everywhere and
half of its prunable channels dead, merged, compared, saved, and loaded by Keras 3 in a process of its own.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from resrep_dist.errors import UserError
from resrep_dist.graph import Graph, trace
from resrep_dist.merging import merge
from resrep_dist.merging.certificate import logits
from resrep_dist.merging.surgery import kerassurgeon_can
from resrep_dist.run import save_model
from tests.networks import with_dead_channels

import numpy as np
from tensorflow import keras

# The smallest images that the families take, pixels.
IMAGE_SIZES = {
    "ResNet50": 64,
    "ResNet50V2": 64,
    "VGG16": 64,
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "DenseNet121": 64,
    "InceptionV3": 80,
    "Xception": 80,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "NASNetMobile": 64,
    "ConvNeXtTiny": 64,
    "RegNetX002": 64,
}
TOLERANCE = 1e-4
_NUM_IMAGES = 16
_KERAS_3 = """
import json, sys
import keras, numpy as np
results = {}
for path in sys.argv[1:]:
    try:
        model = keras.models.load_model(path, compile=False)
        data = np.load(path + ".npz")
        received = model.predict(data["images"], verbose=0)
        results[path] = float(np.abs(received - data["outputs"]).max() / np.abs(data["outputs"]).max())
    except Exception as error:
        results[path] = f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"
print("RESULTS", json.dumps({"version": keras.__version__, "results": results}))
"""


@dataclasses.dataclass
class Row:
    """What was found of one model, by `residual_groups`."""

    name: str
    prunable: dict[bool, float] = dataclasses.field(default_factory=dict)
    """Share of the multiply-adds that goes when each group keeps one channel."""
    difference: dict[bool, float] = dataclasses.field(default_factory=dict)
    """Largest difference of the logits after the merge, relative to the largest logit."""
    path: dict[bool, str] = dataclasses.field(default_factory=dict)
    keras3: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)


def randomise(model: keras.Model, seed: int = 0) -> None:
    """Random batch norm and bias; kernels keep their random start, so that the values keep their size."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        name = weight.name.split("/")[-1].split(":")[0]
        if "variance" in name or "gamma" in name:
            weight.assign(random.uniform(0.7, 1.4, weight.shape))
        elif name in ("beta", "bias", "moving_mean"):
            weight.assign(random.normal(0.0, 0.2, weight.shape))


def examine(name: str, folder: Path) -> Row:
    """Trace, merge and save one model."""
    row, size = Row(name), IMAGE_SIZES[name]
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
    randomise(model)
    images = np.random.default_rng(1).uniform(0.0, 255.0, (_NUM_IMAGES, size, size, 3)).astype(np.float32)
    if name not in ("MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny", "RegNetX002"):
        # These families scale the images themselves.
        images = images / 127.5 - 1.0
    for residual_groups in (False, True):
        try:
            graph = trace(model, residual_groups=residual_groups)
            full = graph.macs.total(graph.widths)
            row.prunable[residual_groups] = 1.0 - graph.macs.total([1] * len(graph.groups)) / full
            if residual_groups:
                row.notes += summarise(graph)
            trained = with_dead_channels(model, graph)
            slim, certificate = merge(trained, graph, images, tolerance=float("inf"))
            row.difference[residual_groups] = certificate.max_relative_difference
            row.path[residual_groups] = "kerassurgeon" if kerassurgeon_can(graph) else "slices"
            path = folder / f"{name}_{'residual' if residual_groups else 'plain'}.h5"
            save_model(slim, path)
            outputs = slim(images, training=False).numpy()
            np.savez(f"{path}.npz", images=images, outputs=outputs)
            assert logits(slim, images).shape[-1] == 10
        except UserError as error:
            row.notes.append(str(error))
    return row


def summarise(graph: Graph) -> list[str]:
    """Reasons for what stays, each with one example."""
    found: dict[str, list[str]] = {}
    for name, reason in graph.refused.items():
        words = [word for word in reason.split() if not any(c in word for c in "_.0123456789") or "prune." in word]
        found.setdefault(" ".join(words), []).append(f"{name}: {reason}")
    notes = [f"{len(examples)} kept, e.g. {examples[0]}" for examples in found.values()]
    return notes + [f"not counted: {', '.join(graph.uncounted)}"] * bool(graph.uncounted)


def load_in_keras3(paths: Sequence[Path]) -> tuple[str, dict[str, float | str]]:
    """Version of Keras 3, and for each file the relative difference of its outputs, or the error."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TF_USE_LEGACY_KERAS", "PYTHONPATH")}
    environment["KERAS_BACKEND"] = "tensorflow"
    result = subprocess.run(
        [sys.executable, "-c", _KERAS_3, *map(str, paths)], capture_output=True, text=True, env=environment, check=True
    )
    line = next(line for line in result.stdout.splitlines() if line.startswith("RESULTS "))
    answer = json.loads(line.removeprefix("RESULTS "))
    return answer["version"], answer["results"]


def main() -> None:
    """Examine the models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(IMAGE_SIZES), choices=list(IMAGE_SIZES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in arguments.models:
            start = time.perf_counter()
            rows.append(examine(name, Path(folder)))
            print(rows[-1], f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
        version, results = load_in_keras3(sorted(Path(folder).glob("*.h5")))
        for row in rows:
            found = [value for path, value in results.items() if Path(path).stem.split("_")[0] == row.name]
            errors = [value for value in found if isinstance(value, str)]
            row.keras3 = f"no: {errors[0]}" if errors else f"yes, {max(found, default=float('nan')):.0e}"
    table = "\n".join(table_lines(rows, version))
    print(table)
    if arguments.output:
        arguments.output.write_text(table + "\n", encoding="utf-8")


def table_lines(rows: Sequence[Row], keras3_version: str) -> list[str]:
    """The table and the notes as Markdown."""
    lines = [
        "# Which models of keras.applications can be pruned",
        "",
        "Written by `python -m tests.quality.coverage --output tests/quality/coverage.md`: random weights, images of "
        "64 or 80 pixels, 10 classes, a random half of the channels of every group dead.",
        "",
        "- Prunable: share of the multiply-adds that goes when one channel is left in every group.",
        f"- Difference: largest one of {_NUM_IMAGES} images' logits before and after the merge, as a fraction of the "
        f"largest logit; {TOLERANCE:.0e} is accepted.",
        "- Path: kerassurgeon, or the merge's own slices where kerassurgeon cannot.",
        f"- Keras 3: the slim `.h5` file loaded by plain Keras {keras3_version}, difference of the outputs.",
        "- First figure with `prune.residual_groups: false` (default), second with `true`.",
        "",
        "| model | traced | prunable | merged, difference | path | loads in Keras 3 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        both = [flag for flag in (False, True) if flag in row.difference]
        prunable = " / ".join(f"{100 * row.prunable[flag]:.1f} %" for flag in both)
        difference = " / ".join(f"{row.difference[flag]:.0e}" for flag in both)
        exact = "yes" if both and max(row.difference.values()) <= TOLERANCE else "no"
        paths = ", ".join(dict.fromkeys(row.path.values()))
        traced = "yes" if row.prunable else "no"
        lines.append(f"| {row.name} | {traced} | {prunable} | {exact}, {difference} | {paths} | {row.keras3} |")
    lines += ["", "What stays as it is with residual groups, and why:", ""]
    for row in rows:
        lines.append(f"- **{row.name}**: {'; '.join(row.notes) or 'nothing but the last layer'}.")
    return lines


if __name__ == "__main__":
    main()
