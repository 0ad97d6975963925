"""What checkpoints cost the training: `python -m tests.quality.checkpoint_cost [--rounds 8]`.

ResNet-20 on the digits with compactors, one process. Blocks of steps that begin with a checkpoint, written in the
background, and blocks without one take turns; a third kind waits for its write, as it was before. Prints the medians,
and what the difference comes to at the default interval and at the one of the configuration.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from resrep_dist.config import CheckpointConfig, load_config
from resrep_dist.data import load_sources
from resrep_dist.graph import trace
from resrep_dist.models import build_model
from resrep_dist.trainer import Trainer

CONFIG = Path(__file__).parents[2] / "configs" / "digits_resnet20.yaml"


def measure(trainer: Trainer, num_rounds: int, block_steps: int) -> dict[str, list[float]]:
    """Seconds of each block, by kind."""

    def save_and_wait() -> None:
        trainer._save()
        trainer.checkpointing.wait()

    kinds: dict[str, Callable[[], None]] = {
        "without": lambda: None,
        "in the background": trainer._save,
        "waited for": save_and_wait,
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    trainer.train_until(block_steps)
    for _ in range(num_rounds):
        for kind, begin in kinds.items():
            start = time.perf_counter()
            begin()
            trainer.train_until(trainer.step + block_steps)
            trainer._step.read_metrics()  # waits for the last step
            seconds[kind].append(time.perf_counter() - start)
            trainer.checkpointing.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--block-steps", type=int, default=8)
    options = parser.parse_args()
    config = load_config(CONFIG)
    in_run = config.checkpoint.interval_steps
    never = CheckpointConfig(interval_steps=10**9)
    logging = dataclasses.replace(config.logging, interval_steps=10**9, evaluation_epochs=10**6)
    config = dataclasses.replace(config, checkpoint=never, logging=logging)
    model = build_model(config.model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, trace(model), config, *load_sources(config), workdir=Path(folder))
        trainer.start()
        seconds = measure(trainer, options.rounds, options.block_steps)
        num_bytes = max(path.stat().st_size for path in Path(folder).rglob("state.npz"))
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    step_seconds = medians["without"] / options.block_steps
    print(f"one step {1000 * step_seconds:.1f} ms, checkpoint {num_bytes:,} bytes, {options.rounds} rounds")
    for kind, median in medians.items():
        spread = statistics.quantiles(seconds[kind], n=4)
        print(f"{kind}: {median:.3f} s per {options.block_steps} steps (quartiles {spread[0]:.3f} to {spread[2]:.3f})")
        # Pairs of neighbours share the machine's mood; medians of the kinds do not.
        pairs = zip(seconds[kind], seconds["without"], strict=True)
        extra = statistics.median(block - without for block, without in pairs)
        if kind != "without":
            shares = ", ".join(
                f"{100 * extra / step_seconds / interval:.3f} % at an interval of {interval} steps"
                for interval in (CheckpointConfig().interval_steps, in_run, options.block_steps)
            )
            print(f"    {1000 * extra:.1f} ms more for each checkpoint: {shares}")


if __name__ == "__main__":
    main()
