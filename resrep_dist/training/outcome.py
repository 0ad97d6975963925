"""What came of a step. It stays on the device until the next step has been launched."""

from collections.abc import Mapping, Sequence

from resrep_dist.checkpoints.digest import Digest
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import DisagreementError, NonFiniteError
from resrep_dist.training.skipping import SkippedSteps

import numpy as np
import tensorflow as tf

# The same on all ranks: applied; skipped to lower the loss scale, which is normal; skipped since a value is not finite;
# skipped since the ranks differ.
GOOD, RESCALED, NOT_FINITE, DRIFTED = map(float, range(4))


class Outcomes:
    """The outcomes of the steps of one rank, each looked at once, after the next step is launched or by `settle`.

    A device then has work in front of it while the host learns of the last step, and does not wait for the host.

    Attributes:
        num_stop_requests: Number of ranks that were asked to stop before the last step that was looked at.

    Args:
        cluster: The ranks.
        dtype: Type of the values on the device.
    """

    def __init__(self, cluster: Cluster, dtype: str) -> None:
        self._cluster, self._dtype = cluster, dtype
        self._skipped = SkippedSteps(cluster)
        self._is_settled = True
        self.num_stop_requests = 0.0

    @property
    def num_skipped_in_a_row(self) -> int:
        """Number of steps in a row that were skipped since a value was not finite."""
        return self._skipped.num_in_a_row

    def follow(self, state: TrainState, names: Sequence[str], compared: Mapping[str, tf.Variable]) -> None:
        """Look at the steps of another state from now on. The last step has to be settled.

        Args:
            state: The state, whose number of steps is counted here.
            names: Names of the values that are checked.
            compared: Variables that the step compares over the ranks, by name.
        """
        assert self._is_settled
        self._state, self._names, self._compared = state, names, compared
        # Kind, number of ranks asked to stop, and for each name whether its value on this rank is finite.
        self._last = tf.Variable(tf.zeros([2 + len(names)], self._dtype), trainable=False)
        # In memory of the host, so that reading it does not wait for what the device has been given since.
        with tf.device("CPU:0"):
            self._before = tf.Variable(tf.zeros([2 + len(names)], self._dtype), trainable=False)

    def keep(self) -> None:
        """Copy the outcome of the step before to the host, inside a step and before `put`.

        A step does not return it: what a step returns is ready only when the device has done all of the step, and the
        device would have nothing to do until the next one is launched.
        """
        with tf.device("CPU:0"):
            self._before.assign(self._last.read_value())

    def put(self, kind: tf.Tensor, num_stop_requests: tf.Tensor, are_finite: tf.Tensor) -> None:
        """Store the outcome of a step, inside it.

        Args:
            kind: GOOD, RESCALED, NOT_FINITE or DRIFTED, a scalar.
            num_stop_requests: Number of ranks that were asked to stop, a scalar.
            are_finite: For each name, bool: whether its value on this rank is finite.
        """
        values = [[tf.cast(kind, self._dtype), num_stop_requests], tf.cast(are_finite, self._dtype)]
        self._last.assign(tf.concat(values, 0))

    def launched(self) -> None:
        """Count a step, and look at the outcome of the one before it. A collective if that one failed.

        Raises:
            NonFiniteError: As `settle`.
            DisagreementError: As `settle`.
        """
        was_settled, self._is_settled = self._is_settled, False
        self._state.step += 1
        if not was_settled:
            # Without this the value would first be copied to the GPU, where it waits until the step has been done.
            with tf.device("CPU:0"):
                before = self._before.numpy()
            self._look(self._state.step - 1, before)

    def settle(self) -> None:
        """Wait for the last step and look at its outcome. A collective if it failed.

        Raises:
            NonFiniteError: On every rank, if too many steps in a row were skipped because values were not finite.
            DisagreementError: On every rank, if their compactors, masks or batch-norm statistics differ.
        """
        if not self._is_settled:
            self._is_settled = True
            self._look(self._state.step, self._last.numpy())

    def forget(self) -> None:
        """Forget the last step: its outcome is not looked at any more."""
        self._is_settled, self.num_stop_requests = True, 0.0

    def _look(self, step: int, outcome: np.ndarray) -> None:
        kind, self.num_stop_requests = outcome[0], float(outcome[1])
        try:
            if kind == GOOD:
                self._skipped.num_in_a_row = 0
            elif kind == NOT_FINITE:
                self._skipped.explain(step, self._names, outcome[2:])
            elif kind == DRIFTED:
                # The next step, which may be under way, is skipped for the same reason and leaves all as it is.
                digests = Digest(self._compared)
                self._cluster.agree(digests.names, digests())
        except (DisagreementError, NonFiniteError):
            # The last step that counts is the one before.
            self._state.step, self._is_settled = step - 1, True
            raise
