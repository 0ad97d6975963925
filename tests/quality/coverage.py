"""Which models can be pruned: one of each family of keras.applications, and such as are no classifiers of images.

    python -m tests.quality.coverage [--models ResNet50 UNet] [--folder DIR] [--output tests/quality/coverage.md]

Every model is built small, with random weights, traced with and without residual groups, given compactors, random
numbers everywhere and half of its prunable channels dead, merged, compared, saved, and loaded by Keras 3 in a process
of its own. What is found stands in the folder; a model whose row stands there already is not examined again. In the
output the rows of models that are not named stay as they are.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resrep_dist.errors import UserError
from resrep_dist.graph import Graph, trace
from resrep_dist.merging import merge
from resrep_dist.merging.surgery import kerassurgeon_can
from resrep_dist.models.files import save_model
from tests.networks import with_dead_channels
from tests.other_networks import signals, two_headed, unet, volumes

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
OTHER_MODELS = {
    "UNet": (unet, "U-Net: Conv2DTranspose, skips by Concatenate"),
    "TwoHeads": (two_headed, "two inputs, two heads"),
    "Signals": (signals, "Conv1D"),
    "Volumes": (volumes, "Conv3D"),
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
        images = [data[key] for key in sorted(data) if key.startswith("images")]
        received = model.predict(images if len(images) > 1 else images[0], verbose=0)
        received = received if isinstance(received, list) else [received]
        expected = [data[key] for key in sorted(data) if key.startswith("outputs")]
        assert len(received) == len(expected)
        pairs = list(zip(received, expected))
        results[path] = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
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


def build(name: str) -> tuple[keras.Model, Any]:
    """A model with random weights, and images for it; a list of arrays for several inputs."""
    random = np.random.default_rng(1)
    if name in OTHER_MODELS:
        model = OTHER_MODELS[name][0]()
        randomize(model)
        images = [random.normal(size=(_NUM_IMAGES, *t.shape[1:])).astype(np.float32) for t in model.inputs]
        return model, images if len(images) > 1 else images[0]
    size = IMAGE_SIZES[name]
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
    randomize(model)
    pixels = random.uniform(0.0, 255.0, (_NUM_IMAGES, size, size, 3)).astype(np.float32)
    if name in ("MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny", "RegNetX002"):
        # These families scale the images themselves.
        return model, pixels
    return model, pixels / 127.5 - 1.0


def save_arrays(path: Path, images: Any, outputs: Any) -> None:
    """Write what Keras 3 is to receive and to return beside a model file."""
    arrays = {}
    for key, values in {"images": images, "outputs": outputs}.items():
        for index, value in enumerate(values if isinstance(values, list) else [values]):
            arrays[f"{key}{index}"] = np.asarray(value)
    np.savez(f"{path}.npz", **arrays)


def examine(name: str, folder: Path) -> Row:
    """Trace, merge and save one model."""
    row = Row(name)
    keras.utils.set_random_seed(0)
    model, images = build(name)
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
            save_arrays(path, images, slim(images, training=False))
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
    names = [*IMAGE_SIZES, *OTHER_MODELS]
    parser.add_argument("--models", nargs="+", default=names, choices=names)
    parser.add_argument("--folder", type=Path, help="where the rows and the slim models go; by default nowhere")
    parser.add_argument("--output", type=Path, help="a Markdown file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [read_or_examine(name, folder) for name in arguments.models]
        paths = sorted(path for row in rows for path in folder.glob(f"{row.name}_*.h5"))
        version, results = load_in_keras3(paths)
    lines = read_lines(arguments.output)
    for row in rows:
        lines[row.name] = (table_line(row, version, results), note_line(row))
    table = "\n".join(
        [*HEAD, *(lines[n][0] for n in names if n in lines), *NOTES, *(lines[n][1] for n in names if n in lines)]
    )
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


HEAD = (
    "# Which models can be pruned",
    "",
    "Written by `python -m tests.quality.coverage --output tests/quality/coverage.md`: families of keras.applications "
    "with images of 64 or 80 pixels and 10 classes, and the small networks of `tests/other_networks.py`. Random "
    "weights, a random half of the channels of every group dead.",
    "",
    "- Prunable: share of the multiply-adds that goes when one channel is left in every group.",
    f"- Difference: largest one of {_NUM_IMAGES} images' outputs before and after the merge, as a fraction of the "
    f"largest output; {TOLERANCE:.0e} is accepted.",
    "- Path: kerassurgeon, or the merge's own slices where kerassurgeon cannot.",
    "- Keras 3: the slim `.h5` file loaded by plain Keras 3, its version, and the difference of the outputs there.",
    "- First figure with `prune.residual_groups: false` (default), second with `true` where that differs.",
    "",
    "| model | traced | prunable | merged, difference | path | loads in Keras 3, difference |",
    "|---|---|---|---|---|---|",
)
NOTES = ("", "What stays as it is with residual groups, and why:", "")


def read_lines(path: Path | None) -> dict[str, tuple[str, str]]:
    """The line of the table and the note of each model in an earlier output, by its name."""
    if path is None or not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    rows = {m[1]: m[0] for m in re.finditer(r"^\| (\w+) \|.*$", text, re.MULTILINE)}
    notes = {m[1]: m[0] for m in re.finditer(r"^- \*\*(\w+)\*\*:.*$", text, re.MULTILINE)}
    return {name: (rows[name], note) for name, note in notes.items()}


def table_line(row: Row, keras3_version: str, keras3: Mapping[str, float | str]) -> str:
    """The line of the table."""
    prunable = " / ".join(f"{100 * share:.1f} %" for share in row.prunable.values())
    difference = " / ".join(f"{value:.0e}" for value in row.difference.values())
    is_exact = bool(row.difference) and max(row.difference.values()) <= TOLERANCE
    merged = f"{'yes' if is_exact else 'no'}, {difference}"
    paths = " / ".join(row.path.values())
    results = [value for path, value in keras3.items() if Path(path).stem.split("_")[0] == row.name]
    traced = "yes" if row.prunable else "no"
    return f"| {row.name} | {traced} | {prunable} | {merged} | {paths} | {_keras3_cell(results, keras3_version)} |"


def note_line(row: Row) -> str:
    """The note below the table."""
    what = f" ({OTHER_MODELS[row.name][1]})" if row.name in OTHER_MODELS else ""
    return f"- **{row.name}**:{what} {'; '.join(row.notes) or 'nothing but the last layer'}."


def _keras3_cell(results: Sequence[float | str], version: str) -> str:
    errors = [result for result in results if isinstance(result, str)]
    if errors or not results:
        return f"no: {errors[0] if errors else 'no file'}"
    return f"yes, {version}, {max(results):.0e}"


if __name__ == "__main__":
    main()
