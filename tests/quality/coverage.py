"""Which classification models of keras.applications can be pruned: one of each family, with random weights.

    python -m tests.quality.coverage [--models ResNet50 MobileNet] [--folder DIR] [--output tests/quality/coverage.md]

Every model is built small, traced with and without residual groups, given compactors, random numbers everywhere and
half of its prunable channels dead, merged, compared, saved, and loaded by Keras 3 in a process of its own. What is
found stands in the folder; a model whose row stands there already is not examined again.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from resrep_dist.errors import UserError
from resrep_dist.graph import Graph, trace
from resrep_dist.merging import merge
from resrep_dist.merging.surgery import kerassurgeon_can
from resrep_dist.models.files import save_model
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
_NUM_IMAGES = 8
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


PLAIN, RESIDUAL = "plain", "residual"


@dataclasses.dataclass
class Row:
    """What was found of one model, without and with residual groups."""

    name: str
    prunable: dict[str, float] = dataclasses.field(default_factory=dict)
    """Share of the multiply-adds that goes when each group keeps one channel."""
    difference: dict[str, float] = dataclasses.field(default_factory=dict)
    """Largest difference of the logits after the merge, relative to the largest logit."""
    path: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def randomize(model: keras.Model, seed: int = 0) -> None:
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
    randomize(model)
    images = np.random.default_rng(1).uniform(0.0, 255.0, (_NUM_IMAGES, size, size, 3)).astype(np.float32)
    if name not in ("MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny", "RegNetX002"):
        # These families scale the images themselves.
        images = images / 127.5 - 1.0
    try:
        graphs = {PLAIN: trace(model), RESIDUAL: trace(model, residual_groups=True)}
        row.notes = summarize(graphs[RESIDUAL])
        for option, graph in graphs.items():
            if option == RESIDUAL and graph.groups == graphs[PLAIN].groups:
                continue
            full = graph.macs.total(graph.widths)
            row.prunable[option] = 1.0 - graph.macs.total([1] * len(graph.groups)) / full
            trained = with_dead_channels(model, graph)
            slim, certificate = merge(trained, graph, images, tolerance=float("inf"))
            row.difference[option] = certificate.max_relative_difference
            row.path[option] = "kerassurgeon" if kerassurgeon_can(graph) else "slices"
            path = folder / f"{name}_{option}.h5"
            save_model(slim, path)
            np.savez(f"{path}.npz", images=images, outputs=slim(images, training=False))
    except UserError as error:
        row.notes.append(str(error))
    return row


def summarize(graph: Graph) -> list[str]:
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
    parser.add_argument("--folder", type=Path, help="where the rows and the slim models go; by default nowhere")
    parser.add_argument("--output", type=Path, help="a Markdown file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [read_or_examine(name, folder) for name in arguments.models]
        paths = sorted(path for row in rows for path in folder.glob(f"{row.name}_*.h5"))
        version, results = load_in_keras3(paths)
    table = "\n".join(table_lines(rows, version, results))
    print(table)
    if arguments.output:
        arguments.output.write_text(table + "\n", encoding="utf-8")


def read_or_examine(name: str, folder: Path) -> Row:
    """The row of a model, kept in the folder."""
    path = folder / f"{name}.json"
    if not path.exists():
        row = examine(name, folder)
        path.write_text(json.dumps(dataclasses.asdict(row)), encoding="utf-8")
    return Row(**json.loads(path.read_text(encoding="utf-8")))


def table_lines(rows: Sequence[Row], keras3_version: str, keras3: Mapping[str, float | str]) -> list[str]:
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
        "- First figure with `prune.residual_groups: false` (default), second with `true` where that differs.",
        "",
        "| model | traced | prunable | merged, difference | path | loads in Keras 3 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        prunable = " / ".join(f"{100 * share:.1f} %" for share in row.prunable.values())
        difference = " / ".join(f"{value:.0e}" for value in row.difference.values())
        is_exact = bool(row.difference) and max(row.difference.values()) <= TOLERANCE
        merged = f"{'yes' if is_exact else 'no'}, {difference}"
        paths = " / ".join(row.path.values())
        loaded = _keras3_cell([value for path, value in keras3.items() if Path(path).stem.split("_")[0] == row.name])
        traced = "yes" if row.prunable else "no"
        lines.append(f"| {row.name} | {traced} | {prunable} | {merged} | {paths} | {loaded} |")
    lines += ["", "What stays as it is with residual groups, and why:", ""]
    for row in rows:
        lines.append(f"- **{row.name}**: {'; '.join(row.notes) or 'nothing but the last layer'}.")
    return lines


def _keras3_cell(results: Sequence[float | str]) -> str:
    errors = [result for result in results if isinstance(result, str)]
    if errors or not results:
        return f"no: {errors[0] if errors else 'no file'}"
    return f"yes, {max(results):.0e}"


if __name__ == "__main__":
    main()
