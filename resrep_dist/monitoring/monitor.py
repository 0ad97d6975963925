"""Shows a run: TensorBoard, one progress bar, log lines. Silent on all ranks but rank 0."""

import contextlib
import datetime
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resrep_dist.distributed.environment import launched_size, launcher_terminal
from resrep_dist.errors import one_line
from resrep_dist.monitoring.dashboard import subrun_of
from resrep_dist.monitoring.events import drop_events_after

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

_log = logging.getLogger(__name__)
_PIPE_COLUMNS = 120


def make_console() -> Console:
    """Create the console for the terminal.

    If a launcher reads this process' output through a pipe, it is the terminal that RESREP_TERMINAL names, or on which
    the launcher prints, if any.
    """
    terminal = os.environ.get("RESREP_TERMINAL") or launcher_terminal()
    # The output of a rank under mpirun looks like a terminal, but goes through a pipe.
    is_pipe = launched_size() > 1 or not sys.stdout.isatty()
    if terminal and is_pipe:
        try:
            return Console(file=open(terminal, "w", encoding="utf-8"), force_terminal=True)
        except OSError as error:
            _log.warning("RESREP_TERMINAL: %s cannot be opened (%s); plain lines instead", terminal, error.strerror)
    # Rich assumes 80 columns for a pipe, and would cut off the figures of a wide table.
    width = _PIPE_COLUMNS if is_pipe and "COLUMNS" not in os.environ else None
    return Console(soft_wrap=True, force_terminal=False if is_pipe else None, width=width)


def configure_logging(console: Console, is_root: bool, is_quiet: bool = False) -> None:
    """Set which log lines are shown: this package's on rank 0, errors on all ranks, and only errors of TensorFlow.

    Args:
        console: The console for the terminal.
        is_root: True on rank 0.
        is_quiet: True to show only warnings and errors.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stdout)
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, show_time=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("resrep_dist")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.ERROR if not is_root else logging.WARNING if is_quiet else logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def default_console(is_root: bool) -> Console:
    """Create the console of a program, and show the log if the program does not set up one itself.

    Args:
        is_root: True on rank 0.
    """
    console = make_console()
    if not logging.getLogger("resrep_dist").hasHandlers():
        configure_logging(console, is_root)
    return console


class Monitor:
    """Curves and progress of one phase.

    Errors of the disk are logged once and otherwise ignored, so that a full disk does not stop training.

    Attributes:
        folder: Folder of the event files; None to write none.

    Args:
        title: Name of the phase, for the progress bar.
        folder: See the attribute.
        console: Where progress is shown; None to show none.
        num_steps: Planned number of steps.
    """

    def __init__(self, title: str, folder: Path | None, console: Console | None, num_steps: int) -> None:
        self._title, self._console, self._num_steps = title, console, num_steps
        self.folder = folder
        self._writer: tf.summary.SummaryWriter | None = None
        self._subruns: dict[str, tf.summary.SummaryWriter] = {}
        self._progress: Progress | None = None
        self._start_time, self._start_step = time.monotonic(), 0
        self._is_profiling = False
        self._is_failing = False

    @property
    def is_silent(self) -> bool:
        """True if nothing is written or shown."""
        return self.folder is None and self._console is None

    def start(self, step: int, write_head: Callable[[], None] | None = None) -> None:
        """Open the curves and the progress bar.

        Args:
            step: Step at which the run starts or resumes. Later points of an earlier run are deleted.
            write_head: Writes what TensorBoard shows beside the curves, by `tf.summary`; None for nothing.
        """
        self._start_time, self._start_step = time.monotonic(), step
        if self.folder is not None:
            with self._tolerant():
                for folder in (self.folder, *(path for path in self.folder.glob("*") if path.is_dir())):
                    drop_events_after(folder, step)
            self._writer = tf.summary.create_file_writer(str(self.folder))
            if write_head is not None:
                with self._tolerant(), self._writer.as_default(step=step):
                    write_head()
        if self._console is not None and self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                # On a narrow terminal the bar becomes shorter, not the numbers.
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[values]}"),
                TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
                console=self._console,
                # Rich's default of ten per second would take more processor time than all other logging.
                refresh_per_second=2,
            )
            self._progress.add_task(self._title, total=self._num_steps, completed=step, values="")
            self._progress.start()

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Log an error of the disk, the first time, and continue: it is no reason to stop training."""
        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            if not self._is_failing:
                _log.error("curves %s: cannot be written (%s); the training goes on", self.folder, one_line(error))
            self._is_failing = True

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add points to curves.

        Args:
            step: Number of steps made.
            values: Values by tag. Those of `subrun_of` go to a run of their own.
        """
        together: dict[str | None, list[Summary]] = {}
        for name, value in values.items():
            together.setdefault(subrun_of(name), []).append(scalar_pb(name, value))
        for subrun, summaries in together.items():
            self._write(step, summaries, subrun)

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Add histograms.

        Args:
            step: Number of steps made.
            values: Arrays by tag, of any shape.
        """
        self._write(step, (histogram_pb(name, array) for name, array in values.items()))

    def _write(self, step: int, summaries: Iterable[Summary], subrun: str | None = None) -> None:
        if self._writer is not None:
            # The messages of TensorBoard itself: `tf.summary.histogram` would run about fifty operations for each.
            together = Summary(value=[value for summary in summaries for value in summary.value])
            with self._tolerant(), self._writer_of(subrun).as_default(step=step):
                tf.summary.experimental.write_raw_pb(together.SerializeToString())

    def _writer_of(self, subrun: str | None) -> tf.summary.SummaryWriter:
        if subrun is None:
            return self._writer
        if subrun not in self._subruns:
            self._subruns[subrun] = tf.summary.create_file_writer(f"{self.folder}/{subrun}")
        return self._subruns[subrun]

    def picture(self, step: int, name: str, pixels: np.ndarray, description: str) -> None:
        """Add an image.

        Args:
            step: Number of steps made.
            name: Tag of the image.
            pixels: uint8 [height, width, 3].
            description: Text that TensorBoard shows with it.
        """
        if self._writer is not None:
            with self._tolerant(), self._writer.as_default(step=step):
                tf.summary.image(name, pixels[np.newaxis], description=description)

    def text_file(self, name: str, text: str) -> None:
        """Write a file beside the curves. If it cannot be written, the old file remains.

        Args:
            name: Name of the file.
            text: Its content.
        """
        if self.folder is not None:
            with self._tolerant():
                partial = self.folder / f"{name}.partial"
                partial.write_text(text, encoding="utf-8")
                os.replace(partial, self.folder / name)

    def start_profile(self) -> None:
        """Start TensorFlow's profiler in this process, for the tab `Profile` of TensorBoard."""
        with self._tolerant():
            tf.profiler.experimental.start(str(self.folder))
            self._is_profiling = True

    def stop_profile(self) -> None:
        """Stop the profiler and write the profile, if it is running."""
        if self._is_profiling:
            self._is_profiling = False
            with self._tolerant():
                tf.profiler.experimental.stop()
            _log.info("The profile is written: %s/plugins/profile", self.folder)

    def progress(self, step: int, values: str, short_values: str) -> None:
        """Update the progress bar, or write a line if there is no terminal.

        Args:
            step: Number of steps made.
            values: Text for a line.
            short_values: Text beside the bar.
        """
        # How long a phase is extended is not known in advance, so the extension is counted beside the phase.
        num_more = max(0, step - self._num_steps)
        extension = f"extension step {num_more}  " if num_more else ""
        if self._progress is not None:
            self._bar(step, extension + short_values)
        elif self._console is not None:
            self._line(step, f"{extension}{values}{self._time_left(step)}")

    def say(self, step: int, text: str) -> None:
        """Write a line, above the progress bar if there is one.

        Args:
            step: Number of steps made.
            text: The line.
        """
        if self._console is not None:
            self._line(step, text)

    def finish(self, step: int) -> None:
        """Move the progress bar to where the phase ends.

        Args:
            step: Number of steps made.
        """
        if self._progress is not None:
            self._bar(step)

    def _bar(self, step: int, values: str | None = None) -> None:
        assert self._progress is not None
        more: dict[str, Any] = {} if values is None else {"values": values}
        self._progress.update(self._progress.task_ids[0], completed=min(step, self._num_steps), **more)

    def _line(self, step: int, text: str) -> None:
        _log.info("%s step %d/%d  %s", self._title, min(step, self._num_steps), self._num_steps, text)

    def _time_left(self, step: int) -> str:
        if step >= self._num_steps:
            return ""
        seconds = (self._num_steps - step) * (time.monotonic() - self._start_time) / max(step - self._start_step, 1)
        return f"  {datetime.timedelta(seconds=round(seconds))} left"

    def _writers(self) -> list[tf.summary.SummaryWriter]:
        return [self._writer, *self._subruns.values()] if self._writer is not None else []

    def flush(self) -> None:
        """Write the curves to disk; called with every checkpoint."""
        for writer in self._writers():
            with self._tolerant():
                writer.flush()

    def close(self) -> None:
        """Close the curves, the profile and the progress bar."""
        self.stop_profile()
        for writer in self._writers():
            with self._tolerant():
                writer.close()
        if self._progress is not None:
            self._progress.stop()
        # A run that goes on in the same process opens new ones.
        self._writer = self._progress = None
        self._subruns.clear()
