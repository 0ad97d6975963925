"""Counts the steps in a row that all ranks skipped, and says why."""

import logging
from collections.abc import Sequence

from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import NonFiniteError

import numpy as np

_log = logging.getLogger(__name__)
MAX_SKIPPED_STEPS_IN_A_ROW = 10


class SkippedSteps:
    """The steps that were skipped since a value was not finite.

    Attributes:
        num_in_a_row: Number of them since the last good step.

    Args:
        cluster: The ranks.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.num_in_a_row = 0

    def explain(self, step: int, names: Sequence[str], are_finite: np.ndarray) -> None:
        """Log which values were not finite on which rank. A collective.

        Args:
            step: Number of the step.
            names: Names of the values that are checked.
            are_finite: For each of them whether it is finite on this rank.

        Raises:
            NonFiniteError: On every rank, if too many steps in a row were skipped.
        """
        self.num_in_a_row += 1
        found = []
        for rank, row in enumerate(self._cluster.gather(are_finite.astype(np.uint8))):
            bad = [name for name, is_fine in zip(names, row, strict=True) if not is_fine]
            if bad:
                more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
                found.append(f"rank {rank}: {', '.join(bad[:3])}{more}")
        where = "; ".join(found) or "a gradient of all ranks together is too large for float16"
        report_skipped(step, self.num_in_a_row, where)


def report_skipped(step: int, num_in_a_row: int, where: str) -> None:
    """Log that a step was skipped.

    Args:
        step: Number of the step.
        num_in_a_row: Number of skipped steps since the last good one, with this one.
        where: What was not finite.

    Raises:
        NonFiniteError: If too many steps in a row were skipped.
    """
    _log.warning("Step %d is skipped by all ranks, %d in a row. Not finite: %s.", step, num_in_a_row, where)
    if num_in_a_row >= MAX_SKIPPED_STEPS_IN_A_ROW:
        raise NonFiniteError(
            f"step {step}: {num_in_a_row} steps in a row were not finite ({where}); lower the learning rate or look "
            "at the data, and start again from the last checkpoint, which is good"
        )
