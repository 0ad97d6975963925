"""Records which channels live, are masked or dead, and since when. Saved beside the curves for resumed runs."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_log = logging.getLogger(__name__)
_NEVER = -1
HISTORY_FILE = "channels.json"
"""Name of the file in the folder of the event files."""


class ChannelHistory:
    """The step at which each channel was first seen masked, and first seen dead; -1 for never.

    A masked channel can be unmasked again, which sets its step to -1. A dead channel stays dead. Channels keep their
    original indices when the model shrinks.
    """

    def __init__(self) -> None:
        self.masked_at: dict[str, np.ndarray] = {}
        """Steps by the name of the group, int64 [D]."""
        self.died_at: dict[str, np.ndarray] = {}
        """Steps by the name of the group, int64 [D]."""

    def update(self, step: int, states: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Add the states of the channels after a step.

        Args:
            step: Number of steps made.
            states: Masked and dead channels, see `Pruner.channel_states`.
        """
        for name, (masked, dead) in states.items():
            masked_at = self.masked_at.setdefault(name, np.full(len(masked), _NEVER))
            died_at = self.died_at.setdefault(name, np.full(len(masked), _NEVER))
            masked_at[masked & (masked_at == _NEVER)] = step
            masked_at[~masked] = _NEVER
            died_at[dead & (died_at == _NEVER)] = step

    def end(self, step: int) -> None:
        """Let all masked channels be dead: the run was merged in training, for which they had to be.

        Args:
            step: Number of steps made.
        """
        for name, masked_at in self.masked_at.items():
            self.died_at[name][(masked_at != _NEVER) & (self.died_at[name] == _NEVER)] = step

    def first_and_last_death(self) -> tuple[int, int]:
        """Return the first and the last step at which channels died; (0, 0) if none has."""
        steps = [step for died_at in self.died_at.values() for step in died_at.tolist() if step != _NEVER]
        return (min(steps), max(steps)) if steps else (0, 0)

    def to_json(self) -> str:
        """Return the text that `load` reads."""
        return json.dumps(
            {
                name: {"masked_at_step": self.masked_at[name].tolist(), "died_at_step": self.died_at[name].tolist()}
                for name in self.masked_at
            }
        )

    @classmethod
    def load(cls, folder: Path, last_step: int | None = None) -> "ChannelHistory":
        """Read `HISTORY_FILE`.

        Args:
            folder: Folder of the event files.
            last_step: Later steps are discarded; None to keep all.

        Returns:
            The history. It is empty if there is no file, or, with a warning, if the file cannot be read.
        """
        history = cls()
        try:
            document = json.loads((folder / HISTORY_FILE).read_text(encoding="utf-8"))
            for name, steps in document.items():
                history.masked_at[name] = _until(steps["masked_at_step"], last_step)
                history.died_at[name] = _until(steps["died_at_step"], last_step)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning(
                "%s cannot be read (%s); the history of the channels starts again.", folder / HISTORY_FILE, error
            )
            return cls()
        return history


def _until(steps: list[int], last_step: int | None) -> np.ndarray:
    array = np.asarray(steps, np.int64)
    return array if last_step is None else np.where(array > last_step, _NEVER, array)
