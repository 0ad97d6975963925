"""Benchmark of the input pipeline against a bare decode loop, in one process."""

import logging
import platform
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

from resrep_dist.config import Config
from resrep_dist.data.encoded import EncodedSource, center_crop, random_resized_crop
from resrep_dist.data.loading import load_sources
from resrep_dist.data.order import training_batches
from resrep_dist.data.source import ImageSource
from resrep_dist.distributed.environment import visible_cores

import tensorflow as tf
from rich.console import Console
from rich.table import Table

_log = logging.getLogger(__name__)
_IDLE_SECONDS = 0.02


def benchmark_data(config: Config, num_images: int, num_rounds: int) -> dict[str, Any]:
    """Measure the speed of the training pipeline and of a bare decode loop of the same files, in turn.

    The bare loop reads the files in their order on disk and decodes, crops and resizes them in the same way, without
    shuffling, labels, mirror images and normalization. For images in memory it is the source in stored order without
    augmentation. The speed per core is in images per second of processor time, so that other programs on the machine
    have little influence.

    Args:
        config: The configuration, which names the data.
        num_images: Number of images per round, rounded down to batches, at least one.
        num_rounds: Number of rounds.

    Returns:
        `ratio_per_core` of the pipeline's speed to the loop's, the median of `ratio_per_core_of_rounds`; for `pipeline`
        and `bare_decode_loop` the medians of `images_per_second_and_core` and `images_per_second`; and the setting.

    Raises:
        UserError: If the data cannot be read.
    """
    source, _ = load_sources(config.data, config.model, config.task)
    batch_size = config.data.global_batch_size
    num_batches = max(1, num_images // batch_size)
    loops = {"pipeline": iter(_pipeline(source, config)), "bare_decode_loop": iter(_bare_decode_loop(source, config))}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    # The first round, which warms up the cache of the files and TensorFlow, does not count.
    for number in range(num_rounds + 1):
        for name in sorted(loops, reverse=number % 2 == 1):
            rounds[name].append(_measure(loops[name], num_batches, batch_size))
        _log.info("Round %d of %d done.", number, num_rounds)
    pairs = list(zip(rounds["pipeline"][1:], rounds["bare_decode_loop"][1:], strict=True))
    ratios = [ours["images_per_second_and_core"] / bare["images_per_second_and_core"] for ours, bare in pairs]
    return {
        "source": config.data.source,
        "augmentation": config.data.augmentation,
        "image_size_pixels": config.model.image_size,
        "batch_size_images": batch_size,
        "images_per_round": num_batches * batch_size,
        "ratio_per_core": statistics.median(ratios),
        "ratio_per_core_of_rounds": ratios,
        **{
            name: {key: statistics.median(figure[key] for figure in figures[1:]) for key in figures[0]}
            for name, figures in rounds.items()
        },
        "num_cores": visible_cores(),
        "machine": platform.processor() or platform.machine(),
        "tensorflow": tf.__version__,
    }


def print_data_benchmark(console: Console, result: dict[str, Any]) -> None:
    """Print the speeds of both loops and their ratio."""
    table = Table(title=f"{result['source']}, {result['augmentation']}, {result['image_size_pixels']} px")
    for heading in ("loop", "images/s and core", "images/s"):
        table.add_column(heading, justify="left" if heading == "loop" else "right")
    for name in ("bare_decode_loop", "pipeline"):
        figures = result[name]
        table.add_row(
            name.replace("_", " "),
            f"{figures['images_per_second_and_core']:.0f}",
            f"{figures['images_per_second']:.0f}",
        )
    console.print(table)
    ratios = result["ratio_per_core_of_rounds"]
    console.print(
        f"The pipeline reaches {100 * result['ratio_per_core']:.1f} % of the bare loop per core "
        f"(median of {len(ratios)} rounds, {100 * min(ratios):.1f} to {100 * max(ratios):.1f} %), "
        f"{result['num_cores']} cores."
    )


def _pipeline(source: ImageSource, config: Config) -> Iterable[Any]:
    return training_batches(
        source,
        global_batch_size=config.data.global_batch_size,
        augmentation=config.data.augmentation,
        seed=config.seed,
        rank=0,
        num_ranks=1,
        first_step=0,
        config=config.data,
    )


def _bare_decode_loop(source: ImageSource, config: Config) -> Iterable[Any]:
    batch_size, image_size = config.data.global_batch_size, config.model.image_size
    if not isinstance(source, EncodedSource):
        indices = tf.data.Dataset.range(len(source)).repeat().batch(batch_size)
        return source.load(tf.data.Dataset.zip((indices, indices)), batch_size, "none", 0).prefetch(2)

    def decode(position: tf.Tensor, sample: tf.Tensor) -> tf.Tensor:
        encoded = source.read_bare(sample)
        if config.data.augmentation == "resized_crop_flip":
            return random_resized_crop(encoded, image_size, position, config.seed)
        return center_crop(encoded, image_size, config.data.crop_fraction)

    samples = source.bare_samples().repeat().enumerate()
    parallel: dict[str, Any] = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    return samples.map(decode, **parallel).batch(batch_size, **parallel).prefetch(2)


def _measure(batches: Iterator[Any], num_batches: int, batch_size: int) -> dict[str, float]:
    """Measure the speed from one moment at which all buffers are full to the next such moment."""
    _wait_until_idle()
    start, start_processor = time.perf_counter(), time.process_time()
    for _ in range(num_batches):
        next(batches)
    seconds = time.perf_counter() - start
    # The loop fills its buffers again before the other one runs.
    _wait_until_idle()
    processor_seconds = time.process_time() - start_processor
    num_images = num_batches * batch_size
    return {
        "images_per_second_and_core": num_images / processor_seconds,
        "images_per_second": num_images / seconds,
    }


def _wait_until_idle() -> None:
    before = -1.0
    while (now := time.process_time()) - before > 0.1 * _IDLE_SECONDS:
        before = now
        time.sleep(_IDLE_SECONDS)
