"""Seconds of a pruning run beside plain training of as many steps: `python -m tests.quality.whole_run [--set ...]`.

For an idle machine with two cores. In each round two processes begin together, one on each core: plain training of the
base model, and the pruning run of the same configuration. In the next round they change cores. Seconds are those from
the first step to the end: tracing, masks, shrinks, the merge with its comparison and the evaluations are part of them.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# ResNet-56 at 32 px, 64 images, 450 steps.
SETTINGS = (
    "model.name=resnet56",
    "model.image_size=32",
    "data.global_batch_size=64",
    "train.num_epochs=20.05",
    "prune.lasso_strength=auto",
    "prune.mask_start_epochs=auto",
    "prune.mask_interval_steps=auto",
    "prune.channels_per_update=auto",
    "prune.max_extension_epochs=0",
)


def measure(path: Path, overrides: list[str], is_plain: bool) -> dict[str, float]:
    """Train for the steps of the phase `train` in this process, with or without pruning."""
    from resrep_dist.config import load_config
    from resrep_dist.graph import trace
    from resrep_dist.models.building import build_model
    from resrep_dist.training.trainer import Trainer
    from tests.networks import sources_of

    from tensorflow import keras

    config = load_config(path, overrides)
    keras.utils.set_random_seed(config.seed)
    model = build_model(config.model)
    graph = None if is_plain else trace(model)
    if is_plain:
        shrink = dataclasses.replace(config.shrink, mode="off")
        train = dataclasses.replace(config.train, distillation=None)
        config = dataclasses.replace(config, base=None, train=train, prune=None, shrink=shrink)
    trainer = Trainer(model, graph, config, *sources_of(config), console=None)
    trainer.start()
    start = time.perf_counter()
    trainer.train_until(trainer.num_steps)
    seconds = time.perf_counter() - start
    merged = trainer.state.early_merge or {}
    merge_step = merged["step"] if "certificate" in merged else -1
    return {"seconds": seconds, "num_steps": trainer.step, "merge_step": merge_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "digits_resnet20.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=["plain", "pruned"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.config, [*SETTINGS, *options.overrides], options.only == "plain")))
        return
    ratios = []
    for number in range(options.rounds):
        processes = {}
        for core, name in enumerate(("plain", "pruned") if number % 2 == 0 else ("pruned", "plain")):
            command = ["taskset", "-c", str(core), sys.executable, "-m", "tests.quality.whole_run", *sys.argv[1:]]
            processes[name] = subprocess.Popen([*command, "--only", name], stdout=subprocess.PIPE, text=True)
        figures = {name: json.loads(p.communicate()[0].splitlines()[-1]) for name, p in processes.items()}
        ratios.append(figures["pruned"]["seconds"] / figures["plain"]["seconds"])
        print(f"round {number + 1}: {ratios[-1]:.3f}  {figures}", flush=True)
    print(f"pruned / plain, median of {options.rounds}: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
