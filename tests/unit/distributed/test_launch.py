"""What is known of a launch from the environment, and launches that are refused."""

import os
import re

from resrep_dist.distributed import devices, launch_checks
from resrep_dist.distributed import environment as launch_environment
from resrep_dist.distributed.devices import own_gpu
from resrep_dist.errors import HostError, UserError
from resrep_dist.version import __version__

import pytest
import tensorflow as tf

SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "28", "SLURM_PROCID": "17", "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "8(x3),4", "PMIX_RANK": "17",
}  # fmt: skip
BATCH_SCRIPT = {"SLURM_NTASKS": "28", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}


@pytest.fixture
def launched(monkeypatch):
    """Set what a launcher would, and nothing else."""

    def launch(variables):
        for name in list(os.environ):
            if name.startswith(("SLURM_", "OMPI_", "PMI", "HOROVOD_", "MPI_", "NCCL_")):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    launch({})
    return launch


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, (0, 1, 1)),
        (SRUN, (17, 28, 8)),
        (SRUN | {"SLURM_NODEID": "3", "SLURM_PROCID": "24", "PMIX_RANK": "24"}, (24, 28, 4)),
        (BATCH_SCRIPT, (0, 1, 1)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, (3, 8, 4)),
        # mpirun in a job starts its ranks on other nodes by a step of one task for each node.
        (
            SRUN | {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
            (3, 8, 4),
        ),
        ({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_SIZE": "2"} | BATCH_SCRIPT, (1, 2, 2)),
    ],
)
def test_rank_size_and_ranks_on_this_host(launched, variables, expected):
    launched(variables)
    found = (
        launch_environment.launched_rank(),
        launch_environment.launched_size(),
        launch_environment.launched_local_size(),
    )
    assert found == expected


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, 16),
        ({"HOROVOD_SIZE": "4", "HOROVOD_LOCAL_SIZE": "4"}, 4),
        # Bound to its own cores by Open MPI: these are all its own.
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_MCA_orte_bound_at_launch": "1"}, 16),
        (SRUN, 2),
        (SRUN | {"SLURM_CPUS_PER_TASK": "6"}, 6),
        ({"HOROVOD_LOCAL_SIZE": "99"}, 1),
    ],
)
def test_cores_are_divided_among_the_ranks_of_a_host_once(launched, monkeypatch, variables, expected):
    launched(variables)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert launch_environment.available_cores() == expected


@pytest.mark.parametrize("num_cores, expected", [(4, 4), (8, 2), (16, 4)])
def test_a_rank_that_something_else_bound_has_its_cores_for_itself(launched, monkeypatch, num_cores, expected):
    launched({"PMI_SIZE": "4", "MPI_LOCALNRANKS": "4"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert launch_environment.available_cores() == expected


@pytest.mark.parametrize(
    "variables, fix",
    [
        (SRUN, "srun started 28 processes, but Horovod sees 1, so each would train alone; start them with `srun --mpi"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes, but Horovod sees 1"),
        (SRUN | {"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes, but Horovod sees 1"),
    ],
)
def test_processes_that_are_no_cluster_are_refused(launched, variables, fix):
    launched(variables)
    with pytest.raises(UserError, match=fix):
        launch_environment.require_one_cluster(1)
    launch_environment.require_one_cluster(launch_environment.launched_size())


def test_each_rank_has_a_gpu_of_its_own(launched):
    assert [own_gpu(8, rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    for local_rank, says_it in ((0, True), (1, False)):
        with pytest.raises(HostError, match="2 ranks but 1 GPUs; start at most 1 ranks per host") as caught:
            own_gpu(1, local_rank, 2)
        # One line for each host, whichever has too few.
        assert caught.value.is_of_one_rank == says_it
    # Slurm shows each rank its own only.
    launched(SRUN | {"SLURM_GPUS_PER_TASK": "1"})
    assert [own_gpu(1, rank, 8) for rank in range(8)] == [0] * 8
    # Tests may let ranks share one.
    launched({"NCCL_MULTI_RANK_GPU_ENABLE": "1"})
    assert [own_gpu(1, rank, 2) for rank in range(2)] == [0, 0]
    # Set without any GPU asked for.
    launched(SRUN | {"SLURM_TRES_PER_TASK": "cpu=8", "SLURM_GPU_BIND": "closest"})
    with pytest.raises(HostError):
        own_gpu(1, 1, 2)


def test_gpus_that_slurm_gave_and_tensorflow_does_not_see_are_asked_for(launched, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda number: None)
    launched(SRUN)
    assert not launch_environment.has_slurm_gpus()
    launched(SRUN | {"SLURM_STEP_GPUS": "0,1"})
    with pytest.raises(HostError, match="Slurm gave this job GPUs, but TensorFlow sees none") as caught:
        devices.limit_threads_and_pin_gpu(1, 2)
    assert not caught.value.is_of_one_rank
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    devices.limit_threads_and_pin_gpu(1, 2)


@pytest.mark.parametrize("variables, num_cores, expected", [(SRUN, 1, [2]), (SRUN, 2, []), ({}, 1, [2]), ({}, 2, [])])
def test_a_process_with_one_core_has_a_second_thread(launched, monkeypatch, variables, num_cores, expected):
    numbers = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda number: None)
    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", numbers.append)
    monkeypatch.setattr(devices, "visible_cores", lambda: num_cores)
    launched(variables)
    devices.limit_threads_and_pin_gpu(0, 2)
    assert numbers == expected


class OtherHost:
    """A rank on another host than rank 0, which starts with what `root` returns."""

    rank, size, local_rank, is_root = 1, 2, 0, False

    def __init__(self, root):
        self.from_root = lambda _: root
        self.everywhere = lambda function: function()
        self.sum = lambda tensors, name: [2 * tensor for tensor in tensors]


def test_other_versions_and_another_workdir_are_refused_by_the_host_that_has_them(launched, tmp_path, monkeypatch):
    launched({"HOROVOD_SIZE": "2"})
    monkeypatch.setattr(launch_checks, "_SHARED_WITHIN_SECONDS", 0.2)
    versions = launch_checks.installed_versions()
    assert re.fullmatch(re.escape(__version__) + r" \([0-9a-f]{12}\)", versions["resrep-dist"])
    assert versions["tf-keras"] == "2.21.0" and versions["horovod"] == "0.28.1"
    (tmp_path / "launch-1").touch()
    good = {"versions": versions, "sees_gpus": launch_checks._sees_gpus(), "token": "launch-1"}
    launch_checks.check_launch(OtherHost(good), tmp_path)
    with pytest.raises(UserError, match=r"other versions .*\(numpy 2\S+ here, 1.26.0 there\)"):
        launch_checks.check_launch(OtherHost(good | {"versions": versions | {"numpy": "1.26.0"}}), tmp_path)
    with pytest.raises(UserError, match=r"other versions .*\(keras \S+ here, none there\)"):
        fewer = {name: version for name, version in versions.items() if name != "keras"}
        launch_checks.check_launch(OtherHost(good | {"versions": fewer}), tmp_path)
    for name, text in (("a.py", "1"), ("b.py", "2")):
        (tmp_path / name).write_text(text)
    one = launch_checks._digest_of_source(tmp_path)
    (tmp_path / "b.py").write_text("3")
    assert launch_checks._digest_of_source(tmp_path) != one
    with pytest.raises(UserError, match="is another folder there than on the host of rank 0"):
        launch_checks.check_launch(OtherHost(good | {"token": "launch-2"}), tmp_path)


@pytest.mark.parametrize("here, words", [(False, "no GPU here, .* has some"), (True, "GPUs here, .* has none")])
def test_a_host_on_its_cpu_among_hosts_on_gpus_is_refused(launched, tmp_path, monkeypatch, here, words):
    launched({"HOROVOD_SIZE": "2"})
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"] if here else [])
    root = {"versions": launch_checks.installed_versions(), "sees_gpus": not here, "token": "launch-1"}
    with pytest.raises(UserError, match=words):
        launch_checks.check_launch(OtherHost(root), tmp_path)
