"""What checkpoints cost the training: `python -m tests.quality.checkpoint_cost [--rounds 8]`.

ResNet-20 on the digits with compactors, one process. Blocks of steps that begin with a checkpoint, written in the
background, and blocks without one take turns; a third kind waits for its write. Prints for each kind the medians
of wall-clock time and of the processor time of all threads, which a busy machine disturbs less, and for each
checkpoint how long the training stood still and what the writing thread computed.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

from resrep_dist.config import CheckpointConfig, load_config
from resrep_dist.graph import trace
from resrep_dist.models.building import build_model
from resrep_dist.training.trainer import Trainer
from tests.networks import sources_of

CONFIG = Path(__file__).parents[2] / "configs" / "digits_resnet20.yaml"
KINDS = ("without", "in the background", "waited for")


@dataclasses.dataclass
class Times:
    """Seconds of each block, and of each of its checkpoints."""

    wall: list[float] = dataclasses.field(default_factory=list)
    processor: list[float] = dataclasses.field(default_factory=list)
    standing: list[float] = dataclasses.field(default_factory=list)
    writing: list[float] = dataclasses.field(default_factory=list)


def writer_seconds(trainer: Trainer) -> float:
    """Processor time that the writing thread has used up to now."""
    return trainer.checkpoints._executor.submit(time.thread_time).result()


def measure(trainer: Trainer, num_rounds: int, block_steps: int) -> dict[str, Times]:
    times = {kind: Times() for kind in KINDS}
    trainer.train_until(block_steps)
    for _ in range(num_rounds):
        for kind, of_kind in times.items():
            written = writer_seconds(trainer)
            start, start_processor = time.perf_counter(), time.process_time()
            if kind != "without":
                trainer._save()
            if kind == "waited for":
                trainer.checkpoints.wait()
            of_kind.standing.append(time.perf_counter() - start)
            trainer.train_until(trainer.step + block_steps)
            trainer._live.step.read_metrics()  # waits for the last step
            of_kind.wall.append(time.perf_counter() - start)
            trainer.checkpoints.wait()
            of_kind.processor.append(time.process_time() - start_processor)
            of_kind.writing.append(writer_seconds(trainer) - written)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--block-steps", type=int, default=8)
    options = parser.parse_args()
    config = load_config(CONFIG)
    intervals = (CheckpointConfig().interval_steps, config.checkpoint.interval_steps)
    logging = dataclasses.replace(config.logging, interval_steps=10**9, evaluation_epochs=10**6)
    config = dataclasses.replace(config, checkpoint=CheckpointConfig(interval_steps=10**9), logging=logging)
    model = build_model(config.model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, trace(model), config, *sources_of(config), workdir=Path(folder))
        trainer.start()
        times = measure(trainer, options.rounds, options.block_steps)
        num_bytes = max(path.stat().st_size for path in Path(folder).rglob("state.npz"))
    step_seconds = statistics.median(times["without"].wall) / options.block_steps
    print(f"one step {1000 * step_seconds:.1f} ms, checkpoint {num_bytes:,} bytes, {options.rounds} rounds")
    for kind, of_kind in times.items():
        wall, processor, standing, writing = (statistics.median(values) for values in vars(of_kind).values())
        low, _, high = statistics.quantiles(of_kind.wall, n=4)
        print(f"{kind}: {wall:.3f} s (quartiles {low:.3f} to {high:.3f}), processor {processor:.3f} s")
        if kind != "without":
            shares = ", ".join(
                f"{100 * (standing + writing) / step_seconds / interval:.3f} % every {interval} steps"
                for interval in intervals
            )
            print(
                f"    stands still for {1000 * standing:.1f} ms, the thread computes {1000 * writing:.1f} ms: {shares}"
            )


if __name__ == "__main__":
    main()
