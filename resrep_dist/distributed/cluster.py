"""The ranks of a run. Only this module uses Horovod.

A run of a single process is a cluster of one, which does not import Horovod.
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from resrep_dist.distributed.devices import limit_threads_and_pin_gpu
from resrep_dist.distributed.environment import (
    available_cores,
    launched_local_rank,
    launched_local_size,
    launched_size,
    require_one_cluster,
)
from resrep_dist.distributed.flat import pack, unpack
from resrep_dist.distributed.presence import Presence
from resrep_dist.distributed.watchdog import Watchdog
from resrep_dist.errors import DisagreementError, HostError, UserError, describe_error, error_from

import numpy as np
import tensorflow as tf


class Cluster:
    """The ranks of a run. Starts Horovod if a launcher started several processes, and assigns a GPU to this rank.

    All methods are collectives, except the properties: all ranks call them in the same order.

    Attributes:
        rank: Number of this rank, counted from 0.
        size: Number of ranks.
        local_rank: Number of this rank on its host, counted from 0.
        watchdog: Ends this process if training makes no progress.

    Args:
        deterministic: True if sums over the ranks have to be the same bits in every run (`training.deterministic`).

    Raises:
        HostError: If Horovod cannot be imported, or the GPUs of the host do not fit its ranks.
        UserError: If Horovod does not see all processes, or TensorFlow has already initialized the GPUs.
    """

    def __init__(self, deterministic: bool = True) -> None:
        self.rank, self.size, self.local_rank = 0, 1, 0
        self._horovod: Any = None
        presence, error = None, None
        if launched_size() > 1:
            # Otherwise Horovod adds up together what is ready at the same time. The bits of a sum would depend on that.
            os.environ["HOROVOD_DISABLE_GROUP_FUSION"] = "1"
            if deterministic:
                # NVLink's switches add in an order of their own. Set unless the user has set it.
                os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
            if tf.config.list_physical_devices("GPU"):
                # A sum is done when the GPU knows what to wait for. Otherwise a thread waits until it has arrived, and
                # only then is the GPU given what follows. Set unless the user has set it.
                os.environ.setdefault("HOROVOD_ENABLE_ASYNC_COMPLETION", "1")
            self._start_horovod()
        # Before the first operation, since TensorFlow then takes all GPUs and as many threads as there are cores.
        try:
            limit_threads_and_pin_gpu(self.local_rank, launched_local_size())
        except UserError as raised:
            error = raised
        if self.size > 1:
            # With an error too: the other ranks wait for this one here, and learn from it that this one has failed.
            # On the CPU, since it may have no GPU of its own.
            with tf.device("CPU:0"):
                presence = Presence(self.rank, self.size, self._from_root)
        self.watchdog = Watchdog(self.is_root, presence)
        if error is not None:
            raise error

    @property
    def is_root(self) -> bool:
        """True on rank 0, which writes files."""
        return self.rank == 0

    @property
    def num_cores(self) -> int:
        """Number of processor cores that this rank has for itself."""
        return available_cores()

    @property
    def description(self) -> str:
        """Number of ranks and, if there are several, Horovod's version and what it is built with."""
        if self._horovod is None:
            return "1, without Horovod"
        built = {
            "Gloo": self._horovod.gloo_built(),
            "MPI": self._horovod.mpi_built(),
            "NCCL": self._horovod.nccl_built(),
        }
        controllers = ", ".join(name for name, is_there in built.items() if is_there)
        from horovod import __version__ as version

        return f"{self.size}, Horovod {version} with {controllers}"

    def _start_horovod(self) -> None:
        try:
            import horovod.tensorflow as horovod
        except ImportError as error:
            raise HostError(
                f"a launcher started {launched_size()} processes, but Horovod cannot be imported ({error}); "
                "`resrep doctor` gives the command that installs it",
                launched_local_rank(),
            ) from None
        horovod.init()
        self._horovod = horovod
        self.rank, self.size, self.local_rank = horovod.rank(), horovod.size(), horovod.local_rank()
        require_one_cluster(self.size)

    def sum(self, tensors: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """Sum each tensor over the ranks, all in one collective. Can be used inside `tf.function`.

        Horovod gets them as one tensor. Of several, it would have to learn for each that all ranks have it.

        Args:
            tensors: Tensors of one type, with the same known shapes on all ranks.
            name: A name for the purpose, by which Horovod matches the calls of the ranks.

        Returns:
            The sums, in the order of `tensors`.
        """
        if self._horovod is None:
            return list(tensors)
        packed = tensors[0] if len(tensors) == 1 else pack(tensors)
        # A group of one, which Horovod adds up alone, see `__init__`.
        (summed,) = self._horovod.grouped_allreduce([packed], op=self._horovod.Sum, name=name)
        return [summed] if len(tensors) == 1 else unpack(summed, [tensor.shape for tensor in tensors])

    def averaging(self, tape: tf.GradientTape) -> Any:
        """Return a tape whose gradients Horovod averages by itself, tensor by tensor; on one rank the tape.

        Args:
            tape: The tape of this rank.
        """
        return tape if self._horovod is None else self._horovod.DistributedGradientTape(tape)

    def broadcast(self, variables: Sequence[tf.Variable]) -> None:
        """Set variables to their values on rank 0.

        Args:
            variables: The variables, in the same order on all ranks.
        """
        if self._horovod is not None:
            self._horovod.broadcast_variables(list(variables), root_rank=0)

    def from_root(self, function: Callable[[], Any]) -> Any:
        """Call a function on rank 0 while the other ranks wait, and return its value on all ranks.

        The time of the wait is not limited outside training. In training the limit is `faults.long_limit_seconds`.

        Args:
            function: A function without arguments that returns a JSON value.

        Raises:
            Exception: On all ranks, if the function raises an error on rank 0, with the same message and exit code. On
                the other ranks the class is the same if it is one of `resrep_dist.errors`, otherwise RuntimeError.
        """
        with self.watchdog.patient():
            return function() if self._horovod is None else self._from_root(function)

    def _from_root(self, function: Callable[[], Any]) -> Any:
        answer: dict[str, Any] = {}
        error: Exception | None = None
        if self.is_root:
            try:
                answer = {"value": function()}
            except Exception as raised:  # of any kind: the other ranks must not wait for an answer forever
                error = raised
                answer = {"error": describe_error(raised)}
        answer = json.loads(self._broadcast_bytes(json.dumps(answer).encode()))
        if error is not None:
            raise error
        if "error" in answer:
            raise error_from(answer["error"])
        return answer["value"]

    def everywhere(self, function: Callable[[], Any]) -> Any:
        """Call a function on every rank. If it fails on a rank, no rank continues.

        Args:
            function: A function without arguments.

        Returns:
            Its value on this rank.

        Raises:
            UserError: On every rank, if the function raised a UserError on any: that error on the ranks that have one,
                another with their number on the rest.
        """
        value, error = None, None
        try:
            value = function()
        except UserError as raised:
            error = raised
        (num_failed,) = self.sum([tf.constant(float(error is not None))], "everywhere")
        if error is not None:
            # If all ranks have an error, only rank 0 prints it.
            error.is_of_one_rank = float(num_failed) < self.size  # type: ignore[attr-defined]
            raise error
        if num_failed > 0:
            raise UserError(f"{int(num_failed)} of {self.size} ranks could not start; they say why")
        return value

    def gather(self, array: np.ndarray) -> np.ndarray:
        """Return the arrays of all ranks.

        Args:
            array: An array of the same shape and type on all ranks.

        Returns:
            [size, ...], in the order of the ranks.
        """
        if self._horovod is None:
            return array[np.newaxis]
        return self._horovod.allgather(tf.constant(array[np.newaxis]), name="gather").numpy()

    def agree(self, names: Sequence[str], digests: np.ndarray) -> None:
        """Check that digests are the same on all ranks.

        Args:
            names: What the digests are of.
            digests: One digest per name, int64 [number of names].

        Raises:
            DisagreementError: On every rank, with the names and the ranks that differ.
        """
        table = self.gather(digests)
        differences = [
            f"{name} on rank {rank}"
            for column, name in enumerate(names)
            for rank in _ranks_that_differ(table[:, column])
        ]
        if differences:
            more = f" and {len(differences) - 8} more" if len(differences) > 8 else ""
            against = "rank 0" if self.size == 2 else "the majority"
            raise DisagreementError(
                f"the ranks hold different state: {', '.join(differences[:8])}{more} "
                f"(compared with {against}); resume from the last checkpoint"
            )

    def shutdown(self) -> None:
        """Leave the cluster. No collective may be called afterwards."""
        if self._horovod is not None:
            self._horovod.shutdown()

    def _broadcast_bytes(self, data: bytes) -> bytes:
        length = self._horovod.broadcast(tf.constant(len(data)), root_rank=0, name="length")
        array = np.zeros(int(length), np.uint8)
        if self.is_root:
            array[:] = np.frombuffer(data, np.uint8)
        return self._horovod.broadcast(tf.constant(array), root_rank=0, name="bytes").numpy().tobytes()


def _ranks_that_differ(column: np.ndarray) -> list[int]:
    values, counts = np.unique(column, return_counts=True)
    # With a tie there is no majority; rank 0 is then the reference.
    tied = values[counts == counts.max()]
    reference = column[0] if column[0] in tied else tied[0]
    return [rank for rank, value in enumerate(column) if value != reference]
