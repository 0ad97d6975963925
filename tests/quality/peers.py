"""ResRep's modes and Torch-Pruning on the same work: `python -m tests.quality.peers [--data fashion_mnist]`.

For each seed one base model is trained here. From its weights it is pruned, to the same multiply-adds and in the same
number of steps, on the same batches with the same learning rates, momentum and weight decay

- by Torch-Pruning (Fang et al., 2023) with four criteria and one global ranking, in ten prunings over the first third,
- by the paper's rule (`prune.rule: paper`, `shrink.mode: off`), whose masked rows are deleted at the end, dead or not,
- by ours, in each mode of shrinking, and merged early with each of the options of the training recipe.

The results of Torch-Pruning are carried back into Keras models, whose outputs have to be those of PyTorch, and are
evaluated, counted and exported to ONNX like all others. Results are kept in `results.json` of `--folder`; a run that
stands there is not made again. The table joins them with those of other days, which `tests/quality/peers.json` has.
One process computes at a time. Torch-Pruning gets an environment of its own in `--folder`, some 3 GB to download and
7 GB on disk.
"""

import argparse
import dataclasses
import itertools
import json
import subprocess
import time
import venv
from pathlib import Path
from typing import Any

from resrep_dist.config import Config, load_config
from resrep_dist.data.order import training_batches
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.export.convert import export_model
from resrep_dist.graph import Graph, trace
from resrep_dist.layers.costs import training_macs
from resrep_dist.layers.insertion import compactors_of
from resrep_dist.merging import merge
from resrep_dist.models.building import build_model
from resrep_dist.models.files import load_model, save_model
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.phase import plan_phase
from resrep_dist.training.trainer import Trainer
from tests.networks import sources_of
from tests.quality.peers_report import write_report
from tests.quality.resnet_at_widths import arrays_of, resnet_of

import numpy as np
import tensorflow as tf
from tensorflow import keras

HERE = Path(__file__).parent
CONFIGS = {
    "digits": HERE.parents[1] / "configs" / "digits_resnet20.yaml",
    "fashion_mnist": HERE / "fashion_mnist.yaml",
    "cifar10": HERE / "cifar10.yaml",
}
CRITERIA = ("magnitude", "batch_norm_scale", "taylor", "taylor, multiples of 4", "fpgm")
AUTO = [
    f"prune.{name}=auto"
    for name in ("lasso_strength", "mask_start_epochs", "mask_interval_steps", "channels_per_update")
]
ONE_PENALTY = "prune.kept_lasso_strength=null"
MERGE = ["prune.rule=radial", "shrink.mode=merge", "prune.kept_lasso_strength=1e-4"]
# Of all methods, unless they say otherwise.
ARBITRARY_WIDTHS = "prune.round_to=1"
TAUGHT = [*MERGE, "train.distillation={weight: 0.5, temperature: 4}"]
OURS = {
    "paper": ["prune.rule=paper", "shrink.mode=off", ONE_PENALTY],
    "off, one penalty": ["prune.rule=radial", "shrink.mode=off", ONE_PENALTY],
    "exact, one penalty": ["prune.rule=radial", "shrink.mode=exact", ONE_PENALTY],
    "exact": ["prune.rule=radial", "shrink.mode=exact", "prune.kept_lasso_strength=1e-4"],
    "merge, one penalty": ["prune.rule=radial", "shrink.mode=merge", ONE_PENALTY],
    "merge": MERGE,
    "merge, taught": TAUGHT,
    "merge, residual groups": [*MERGE, "prune.residual_groups=true"],
    "merge, norm per cost": [*MERGE, "prune.ranking=norm_per_cost"],
    "merge, multiples of 4": [*MERGE, "prune.round_to=4"],
    "merge, averaged": [*MERGE, "train.weight_average_decay=0.99"],
    "merge, mixup": [*MERGE, "data.mixup_alpha=0.2"],
    "merge, CutMix": [*MERGE, "data.cutmix_alpha=1"],
    "merge, RandAugment": [*MERGE, "data.rand_augment={num_operations: 1, magnitude: 5}"],
}
PACKAGES = ["torch", "torch-pruning"]
EVALUATION_BATCH_SIZE = 500
INTERVAL_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Work:
    """What all methods start from: one seed of one model and data set."""

    config: Config
    base: keras.Model
    graph: Graph
    data: tuple[Any, Any]
    cluster: Cluster
    folder: Path


def prune_here(work: Work, config: Config) -> tuple[keras.Model, dict[str, Any]]:
    graph = trace(work.base, residual_groups=config.prune.residual_groups)
    trainer = Trainer(work.base, graph, config, *work.data, cluster=work.cluster, console=None)
    trainer.start()
    macs_of_steps = 0.0
    while trainer.step < trainer.num_steps:
        of_step, first_step = training_macs(trainer.model, graph, trainer.state.channels), trainer.step
        trainer.train_until(min(trainer.step + INTERVAL_STEPS, trainer.num_steps))
        macs_of_steps += of_step * (trainer.step - first_step)
    model, num_alive = trainer.evaluated_model, 0
    if trainer.pruner:
        num_alive = trainer.pruner.num_masked_alive()
        for compactor in compactors_of(model, graph):
            compactor.kernel.assign(compactor.kernel * compactor.mask)
    images = work.data[1].first_images(256)
    slim, _ = merge(model, graph, images, dead_row_norm=config.prune.dead_row_norm)
    base_macs = graph.macs.total(graph.widths)
    return slim, {"macs_vs_plain": macs_of_steps / (base_macs * trainer.num_steps), "num_masked_alive": num_alive}


def prune_there(work: Work, config: Config, criterion: str, python: Path) -> tuple[keras.Model, dict[str, Any]]:
    plan = plan_phase(config, work.graph, len(work.data[0]))
    folder = work.folder / "torch"
    folder.mkdir(exist_ok=True)
    paths = {name: str(folder / f"{name}.npz") for name in ("weights", "output", "logits")}
    paths |= {name: str(folder / f"{name}.npy") for name in ("images", "labels")}
    images = write_batches(work, config, plan.num_steps, plan.seed, paths)
    np.savez(paths["weights"], **arrays_of(work.base))
    task = {
        "criterion": criterion,
        "depth": int(config.model.name.removeprefix("resnet")),
        "num_classes": config.model.num_classes,
        "seed": config.seed,
        "target_macs_fraction": config.prune.target_macs_fraction,
        "rates": plan.schedule(tf.range(plan.num_steps)).numpy().tolist(),
        "momentum": config.train.momentum,
        "weight_decay": config.train.weight_decay,
        "report": str(folder / "report.json"),
        **paths,
    }
    (folder / "task.json").write_text(json.dumps(task))
    subprocess.run([python, HERE / "peer_torch.py", folder / "task.json"], check=True)
    with np.load(paths["output"]) as arrays:
        slim = resnet_of(dict(arrays), work.base)
    with np.load(paths["logits"]) as logits:
        for name, model in (("first", work.base), ("last", slim)):
            difference = np.abs(model(images).numpy() - logits[name]).max() / np.abs(logits[name]).max()
            if not difference < 1e-4:
                raise RuntimeError(f"{criterion}: the {name} outputs of Keras and PyTorch differ by {difference:.2g}")
    report = json.loads((folder / "report.json").read_text())
    return slim, {"macs_vs_plain": report["macs_vs_plain"], "versions": report["versions"]}


def write_batches(work: Work, config: Config, num_steps: int, seed: int, paths: dict[str, str]) -> np.ndarray:
    """Write the batches of a run as arrays, unless they are written; return the images of the first."""
    note = Path(paths["images"]).with_name("batches.json")
    written = {"num_steps": num_steps, "seed": seed, "data": config.to_dict()["data"]}
    if not note.exists() or json.loads(note.read_text()) != json.loads(json.dumps(written)):
        note.unlink(missing_ok=True)
        batches = training_batches(
            work.data[0], global_batch_size=config.data.global_batch_size, augmentation=config.data.augmentation,
            seed=seed, rank=0, num_ranks=1, first_step=0,
        )  # fmt: skip
        files: list[np.ndarray] = []
        for step, batch in zip(range(num_steps), batches, strict=False):
            for index, (name, values) in enumerate(zip(("images", "labels"), batch, strict=True)):
                if step == 0:
                    shape = (num_steps, *values.shape)
                    files.append(np.lib.format.open_memmap(paths[name], "w+", values.numpy().dtype, shape))
                files[index][step] = values.numpy()
        for file in files:
            file.flush()
        note.write_text(json.dumps(written))
    return np.array(np.load(paths["images"], mmap_mode="r")[0])


def environment(folder: Path) -> Path:
    """Make the environment of Torch-Pruning, unless it is made, and return its Python."""
    python = folder / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", "import torch_pruning"], check=False).returncode:
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--no-cache-dir", *PACKAGES], check=True)
    return python


def base_of(config: Config, data: tuple[Any, Any], cluster: Cluster, path: Path) -> keras.Model:
    if not path.exists():
        keras.utils.set_random_seed(config.seed)
        trainer = Trainer(build_model(config.model), None, config, *data, cluster=cluster, console=None)
        trainer.start()
        trainer.train_until(trainer.num_steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(trainer.evaluated_model, path)
    return load_model(path)


def measured(work: Work, model: keras.Model, name: str) -> dict[str, Any]:
    """Top-1 and multiply-adds of a model, and its ONNX file."""
    images = work.data[1].first_images(32)
    graph = trace(model)
    return {
        "top1": Evaluator(model).top1(work.data[1], EVALUATION_BATCH_SIZE),
        "macs_fraction": graph.macs.total(graph.widths) / work.graph.macs.total(work.graph.widths),
        "onnx": str(export_model(model, "onnx", work.folder / "onnx" / name, images, 1e-3).path),
    }


def run(options: argparse.Namespace, results: dict[str, Any], save: Any) -> None:
    cluster, python = Cluster(), None
    for model_name, seed in itertools.product(options.models, options.seeds):
        common = [f"seed={seed}", f"model.name={model_name}", "prune.max_extension_epochs=0", *AUTO, ARBITRARY_WIDTHS]
        common += options.overrides
        if options.data_path:
            common.append(f"data.path={options.data_path.absolute()}")
        config = load_config(CONFIGS[options.data], common)
        data, name = sources_of(config), f"{options.data}-{model_name}-seed{seed}"
        base = base_of(config, data, cluster, options.folder / f"base-{name}.h5")
        work = Work(config, base, trace(base), data, cluster, options.folder)
        for target, method in ((t, m) for t in options.targets for m in ("base", *options.methods)):
            key = f"{name}-base" if method == "base" else f"{name}-{target:g}-{method}"
            if key in results:
                continue
            start, extra = time.perf_counter(), [f"prune.target_macs_fraction={target}"]
            if method == "base":
                slim, figures = base, {}
            elif method in CRITERIA:
                python = python or environment(options.folder / "environment")
                slim, figures = prune_there(work, load_config(CONFIGS[options.data], common + extra), method, python)
            else:
                slim, figures = prune_here(work, load_config(CONFIGS[options.data], common + extra + OURS[method]))
            figures |= {"seconds": time.perf_counter() - start, **measured(work, slim, key)}
            identity = {"data": options.data, "model": model_name, "seed": seed, "target": target, "method": method}
            results[key] = identity | figures
            save()
            print(f"{key}: top-1 {figures['top1']:.2f} at {figures['macs_fraction']:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=CONFIGS, default="digits")
    parser.add_argument("--data-path", type=Path, help="the file that tests.quality.fashion_mnist or cifar10 has made")
    parser.add_argument("--models", nargs="+", default=["resnet20"], help="resnet20, resnet56")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--targets", nargs="+", type=float, default=[0.47, 0.25])
    parser.add_argument("--methods", nargs="+", choices=[*CRITERIA, *OURS], default=[*CRITERIA, *OURS])
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="settings of all, for a trial")
    parser.add_argument("--folder", type=Path, default=Path("build/peers"))
    parser.add_argument(
        "--output", type=Path, help="the table; by default tests/quality/peers.md, a trial's in --folder"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "results.json"
    found = json.loads(path.read_text()) if path.exists() else {"overrides": options.overrides, "results": {}}
    if found["overrides"] != options.overrides:
        parser.error(f"{path} holds results of other settings, {found['overrides']}; use another --folder")
    tf.config.experimental.enable_op_determinism()
    # On a GPU: the outputs of Torch-Pruning's models are compared with PyTorch's.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    run(options, found["results"], lambda: path.write_text(json.dumps(found, indent=1)))
    write_report(found, options.output or (options.folder if options.overrides else HERE) / "peers.md")


if __name__ == "__main__":
    main()
