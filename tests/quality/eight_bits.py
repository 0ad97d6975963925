"""What eight bits bring a run's slim model: `python -m tests.quality.eight_bits RUN`.

Exports the base and the slim model of a finished run to TFLite and ONNX, the slim one in eight bits too, as
`resrep export` does. Prints for each file its size, its score (top-1) on the whole validation set, and the median time
of a call, all files in turn. Copying images into the runtime is part of the time.

Examples:
    python -m tests.quality.eight_bits runs/demo
    python -m tests.quality.eight_bits runs/demo --num-calibration-images 1024 --batch 32
"""

import argparse
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from resrep_dist.config import Config, load_config
from resrep_dist.data.loading import load_sources
from resrep_dist.data.order import first_epoch_images
from resrep_dist.distributed.environment import visible_cores
from resrep_dist.export.convert import export_model, size_bytes
from resrep_dist.export.eight_bits import EIGHT_BIT_FORMATS, export_eight_bits
from resrep_dist.export.inference import open_model_file
from resrep_dist.models.files import load_model
from resrep_dist.models.result_folder import current_folder
from resrep_dist.timing.rounds import Median, time_in_turn
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.phase import phase_seed

import numpy as np

FILES = [
    ("base", "tflite"),
    ("slim", "tflite"),
    ("slim", "tflite_int8"),
    ("base", "onnx"),
    ("slim", "onnx"),
    ("slim", "onnx_int8"),
]
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--num-calibration-images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1, help="number of images of a call")
    parser.add_argument("--max-rounds", type=int, default=200)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    config = load_config(options.run / "config.yaml")
    with tempfile.TemporaryDirectory() as folder:
        rows = export_all(options.run, config, options.num_calibration_images, Path(folder))
        medians = measure([Path(row["path"]) for row in rows], options.batch, options.max_rounds)
    for row, median in zip(rows, medians, strict=True):
        row |= {"batch_size": options.batch, "median_ms": median.milliseconds, "spread": median.spread}
    print_table(rows)
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def export_all(run: Path, config: Config, num_calibration_images: int, folder: Path) -> list[Row]:
    train, validation = load_sources(config.data, config.model, config.task)
    paths = {"base": run / "base" / "model.h5", "slim": current_folder(run / "slim") / "model.h5"}
    models = {name: load_model(path) for name, path in paths.items()}
    scores = {name: Evaluator(model, task=config.task).score(validation, 64) for name, model in models.items()}
    calibration = first_epoch_images(train, num_calibration_images, phase_seed(config, config.prune is not None))
    images = validation.first_images(config.merge.num_images)
    rows = []
    for name, format_name in FILES:
        if format_name in EIGHT_BIT_FORMATS:
            # Any drop is shown, not refused.
            of_bits = export_eight_bits(
                models[name], format_name, folder / name, calibration, validation, max_score_drop=100
            )
            path, score, equal = of_bits.path, of_bits.eight_bit_score, of_bits.equal_classes
        else:
            # Its outputs are those of the model, or it would be refused.
            of_float = export_model(models[name], format_name, folder / name, images, config.merge.tolerance)
            path, score, equal = of_float.path, scores[name].value, of_float.argmax_agreement
        row = {"model": name, "format": format_name, "path": str(path), "size_bytes": size_bytes(path)}
        rows.append(row | {"score_name": scores[name].name, "score": score, "equal_classes": equal})
    return rows


def measure(paths: list[Path], batch_size: int, max_rounds: int) -> list[Median]:
    opened = [open_model_file(path) for path in paths]
    images = np.random.default_rng(0).normal(size=(batch_size, *opened[0].input_shape)).astype(np.float32)
    runs = [functools.partial(inference.run, images) for inference in opened]
    return time_in_turn(runs, spread_bound=0.01, max_rounds=max_rounds)


def print_table(rows: list[Row]) -> None:
    print(f"medians, cores: {visible_cores()}, batch of {rows[0]['batch_size']}")
    print(f"| model | format | size | {rows[0]['score_name']} | equal classes | time | of base | of float |")
    print("|---|---|---|---|---|---|---|---|")
    milliseconds = {(row["model"], row["format"]): row["median_ms"] for row in rows}
    for row in rows:
        runtime = row["format"].removesuffix("_int8")
        of_base, of_slim = (row["median_ms"] / milliseconds[name, runtime] for name in ("base", "slim"))
        print(
            f"| {row['model']} | `{row['format']}` | {row['size_bytes'] / 1e6:.3f} MB | {row['score']:.2f} % | "
            f"{100 * row['equal_classes']:.1f} % | {row['median_ms']:.3f} ms ± {100 * row['spread']:.1f} % | "
            f"{of_base:.2f} | {of_slim:.2f} |"
        )


if __name__ == "__main__":
    main()
