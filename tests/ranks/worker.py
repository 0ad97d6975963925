"""What one rank does in the tests of this folder: `worker.py SCENARIO,SCENARIO FOLDER`, each in a folder of its own."""

import logging
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path

from resrep_dist import errors
from resrep_dist.checkpoints.digest import Digest
from resrep_dist.data.order import training_batches
from resrep_dist.data.source import Source
from resrep_dist.distributed import cluster as cluster_module
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import CheckpointWriteError, DisagreementError, NonFiniteError, UserError
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import compactors_of, insert_compactors
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.keras_callbacks import ChannelMasks
from resrep_dist.training.trainer import Trainer
from tests.fitting import fit
from tests.networks import random_source, randomise, shrinking_config, small_config, small_network, sources_of

import numpy as np
import tensorflow as tf
from tensorflow import keras


def make_trainer(cluster: Cluster, source=None, training=None, workdir=None, checkpoint=None, **options) -> Trainer:
    # Other weights on every rank: the trainer has to give them those of rank 0.
    model = small_network(seed=cluster.rank, **options)
    train_data, validation_data = sources_of(small_config())
    changes = {"training": training or {}, "checkpoint": checkpoint or {}}
    config = small_config(prune={"rule": "radial", "target_macs_fraction": 0.3}, **changes)
    data = source or train_data, validation_data
    trainer = Trainer(model, trace(model), config, *data, cluster=cluster, workdir=workdir)
    trainer.start()
    return trainer


def identical(cluster: Cluster, folder: Path) -> None:
    """50 steps; every rank writes its whole state, and which labels its first batch had."""
    trainer = make_trainer(cluster)
    trainer.train_until(50)
    source = sources_of(small_config())[0]
    batches = training_batches(
        source, global_batch_size=32, augmentation="none", seed=1, rank=cluster.rank, num_ranks=cluster.size,
        first_step=0,
    )  # fmt: skip
    images, _ = next(iter(batches))
    state = {name: variable.numpy() for name, variable in trainer.state.items()}
    np.savez(folder / f"rank{cluster.rank}.npz", first_images=images.numpy(), **state)


def trajectory(cluster: Cluster, folder: Path) -> None:
    """40 float64 steps with masks; rank 0 writes the weights after each 10."""
    keras.backend.set_floatx("float64")
    # Batch norm by its running statistics: by batch statistics two halves are another function than the whole.
    trainer = make_trainer(cluster, random_source(), freeze_batch_norm=True)
    states = {}
    for step in (10, 20, 30, 40):
        trainer.train_until(step)
        states |= {f"{step}/{name}": variable.numpy() for name, variable in trainer.state.items()}
    if cluster.is_root:
        np.savez(folder / f"ranks{cluster.size}.npz", **states)


def _write_trajectory(cluster: Cluster, path: Path, training: dict) -> None:
    keras.backend.set_floatx("float64")
    trainer = make_trainer(cluster, random_source(), training)
    states = {}
    for step in (10, 20, 30):
        trainer.train_until(step)
        states |= {f"{step}/{name}": variable.numpy() for name, variable in trainer.state.items()}
    if cluster.is_root:
        np.savez(path, **states)


def parts(cluster: Cluster, folder: Path) -> None:
    """The same four micro-batches of each batch, on one rank or on two; batch norm in training, clipping."""
    training = {"gradient_accumulation_steps": 4 // cluster.size, "gradient_clip_norm": 0.5}
    _write_trajectory(cluster, folder / f"ranks{cluster.size}.npz", training)


def synchronized(cluster: Cluster, folder: Path) -> None:
    """Batch norm by the statistics of the whole batch, on one rank or on two."""
    _write_trajectory(cluster, folder / f"ranks{cluster.size}.npz", {"sync_batch_norm": True})


def keras_fit(cluster: Cluster, folder: Path) -> None:
    """`fit` with the callbacks gives the trainer's result, on the same ranks."""
    keras.backend.set_floatx("float64")
    trainer = make_trainer(cluster, random_source())
    trainer.train_until(30)
    # Other weights on every rank: the callbacks have to give them those of rank 0.
    masks = fit(small_network(cluster.rank), trainer.config, random_source(), 30, cluster, folder / "fit")
    assert masks.state.keys() == trainer.state.keys()
    assert any((variable.numpy() == 0).any() for name, variable in masks.state.items() if name.endswith("mask"))
    for name, variable in masks.state.items():
        np.testing.assert_allclose(variable.numpy(), trainer.state[name].numpy(), rtol=0, atol=1e-9, err_msg=name)
    masks.agree()
    try:
        fit(small_network(), trainer.config, random_source(), 30, None, folder / "alone")
        raise AssertionError("every rank trained on its own gradients")
    except UserError as error:
        assert "averages gradients over 1 rank(s), expected 2 as in ChannelMasks" in str(error), error


def float16(cluster: Cluster, folder: Path) -> None:
    """Mixed precision, gradients sent as float16; what is too large on one rank lowers the scale on all."""
    trainer = make_trainer(cluster, training={"precision": "mixed_float16", "compression": "fp16"})
    trainer.train_until(20)
    metrics = trainer._live.step.read_metrics()
    scale = float(trainer.state["loss_scale"])
    images, labels = next(iter(trainer._batches))
    if cluster.rank == cluster.size - 1:
        images *= 1e30
    trainer._live.step.run(images, labels)
    assert float(trainer.state["loss_scale"]) == scale / 2, (scale, trainer.state["loss_scale"])
    assert trainer._live.step.read_metrics()["skipped_steps"] == 1.0
    trainer.train_until(50)
    state = {name: variable.numpy() for name, variable in trainer.state.items()}
    np.savez(folder / f"rank{cluster.rank}.npz", loss=metrics["loss"], **state)


def statistics(cluster: Cluster, folder: Path) -> None:
    """One step with batch norm in training; all ranks' states, to be compared with a computation by hand."""
    trainer = make_trainer(cluster, random_source())
    randomise(trainer.model)
    np.savez(folder / f"before{cluster.rank}.npz", **{n: v.numpy() for n, v in trainer.state.items()})
    trainer.train_until(1)
    np.savez(folder / f"after{cluster.rank}.npz", **{n: v.numpy() for n, v in trainer.state.items()})


def shrink(cluster: Cluster, folder: Path) -> None:
    """To the end of a run that shrinks, from its newest checkpoint on; every rank writes its state."""
    model = small_network(seed=cluster.rank)
    config, sources = shrinking_config(), (random_source(), random_source(64, seed=1))
    trainer = Trainer(model, trace(model), config, *sources, cluster=cluster, workdir=folder / "run")
    trainer.start()
    first_step = trainer.step
    trainer.train_until(150)
    trainer.checkpoints.wait()
    state = {name: variable.numpy() for name, variable in trainer.state.items()}
    np.savez(folder / f"from{first_step}_rank{cluster.rank}.npz", **state)


def early_merge(cluster: Cluster, folder: Path) -> None:
    """To the end of a run that is merged in its training; every rank writes its state and when it was merged."""
    model = small_network(seed=cluster.rank)
    config, sources = shrinking_config("merge", weight_average_decay=0.9), (random_source(), random_source(64, seed=1))
    trainer = Trainer(model, trace(model), config, *sources, cluster=cluster, workdir=folder / "run")
    trainer.run()
    state = {name: variable.numpy() for name, variable in trainer.state.items()}
    merge = trainer.state.early_merge
    assert merge and "certificate" in merge, merge
    np.savez(folder / f"merged_rank{cluster.rank}.npz", **state, merge_step=np.int64(merge["step"]))


def flip_bit(variable: tf.Variable, bit: int = 1) -> None:
    array = variable.numpy()
    bits = array.reshape(-1).view(np.int32)
    # Of a slot or a weight the lowest bits may be gone by rounding before anyone looks.
    bits[1] ^= bit
    variable.assign(array)


def flipped_bits(cluster: Cluster, folder: Path) -> None:
    """Flip one bit on the last rank in the middle of training; it must be found on all ranks, before a checkpoint."""
    trainer = make_trainer(cluster, workdir=folder / "run", checkpoint={"interval_steps": 30})
    trainer.train_until(22)
    state = {name: variable.numpy() for name, variable in trainer.state.items()}
    messages = []
    found_at_once = ("conv1_compactor/mask", "conv1_compactor/kernel", "bn1/moving_mean", "bn1/moving_variance")
    for kind in ("conv1/kernel", "velocity/conv1/kernel", *found_at_once):
        if cluster.rank == cluster.size - 1:
            if kind.endswith("mask"):
                trainer.state[kind].assign(1.0 - trainer.state[kind])
            else:
                flip_bit(trainer.state[kind], 1 if kind in found_at_once else 1 << 20)
        try:
            trainer.train_until(60)
            raise AssertionError(f"{kind} was not found")
        except DisagreementError as error:
            messages.append(f"{kind}: {trainer.step}: {error}")
        assert not (folder / "run" / "checkpoints").exists()
        for name, variable in trainer.state.items():
            variable.assign(state[name])
        trainer.state.step = 22
        trainer.state.agree(cluster)
    (folder / f"rank{cluster.rank}.txt").write_text("\n".join(messages))
    if cluster.rank == cluster.size - 1:
        flip_bit(trainer.state["conv1/kernel"], 1 << 20)
    trainer.train_until(60)  # ends all ranks


def not_finite(cluster: Cluster, folder: Path) -> None:
    """One rank gets batches with a NaN: all skip those steps, statistics included, and after 10 of them stop."""
    trainer = make_trainer(cluster)
    lines: list[str] = []
    logger = logging.getLogger("resrep_dist.training.skipping")
    logger.setLevel(logging.WARNING)  # only rank 0 shows warnings unless a program asks for them
    logger.addFilter(lambda record: lines.append(record.getMessage()) or False)
    trainer.train_until(5)
    digest = Digest({n: v for n, v in trainer.state.items() if n != "iterations"})
    before = digest()

    def run_bad_step():
        images, labels = next(iter(trainer._batches))
        if cluster.rank == cluster.size - 1:
            images *= np.nan
        trainer._live.step.run(images, labels)

    run_bad_step()
    metrics = trainer._live.step.read_metrics()
    assert np.array_equal(before, digest()), "a skipped step changed the state"
    assert metrics["skipped_steps"] == 1.0, metrics
    assert int(trainer.state.optimizer.iterations) == 6
    expected = f"Step 6 is skipped by all ranks, 1 in a row. Not finite: rank {cluster.size - 1}: the loss, "
    assert lines[0].startswith(expected) and "bn0/moving_mean" not in lines[0] and "rank 0" not in lines[0], lines
    trainer._live.step.run(*next(iter(trainer._batches)))
    assert not np.array_equal(before, digest()) and len(lines) == 1
    before = digest()
    try:
        for _ in range(20):
            run_bad_step()
        raise AssertionError("it went on")
    except NonFiniteError as error:
        assert f"10 steps in a row were not finite (rank {cluster.size - 1}: the loss, " in str(error)
    assert len(lines) == 11 and np.array_equal(before, digest())


def evaluation(cluster: Cluster, folder: Path) -> None:
    """Sharded evaluation gives what one process gives."""
    trainer = make_trainer(cluster)
    trainer.train_until(20)
    source = sources_of(small_config())[1]
    shared = trainer._live.evaluator.top1(source, 50, cluster)
    alone = trainer._live.evaluator.top1(source, 360)
    assert shared == alone, (shared, alone)
    # Its variables are of two types. The targets are one-hot, as this metric wants them.
    evaluator = Evaluator(trainer.model, ["R2Score"], "multilabel")
    labels = np.eye(10, dtype=np.int64)[source.labels]
    one_hot = Source(source.images, labels, 10)
    shared, alone = (evaluator.evaluate(one_hot, *how)["R2Score"] for how in ((50, cluster), (360,)))
    assert abs(shared - alone) < 1e-4, (shared, alone)


def unequal_fit(cluster: Cluster, folder: Path) -> None:
    """`fit` with parts of other sizes ends at once, and does not wait for ever."""
    source, config = random_source(), small_config()
    base = small_network()
    graph = trace(base)
    model = insert_compactors(base, graph)
    model.compile(
        ResRepOptimizer(0.01, compactors_of(model, graph), cluster=cluster), "sparse_categorical_crossentropy"
    )
    masks = ChannelMasks(graph, config.prune, first_step=1, last_step=10, cluster=cluster)
    num_samples = 32 - 16 * cluster.rank
    try:
        model.fit(source.images[:num_samples], np.zeros([num_samples, 10]), 8, verbose=0, callbacks=[masks])
        raise AssertionError("a rank made more steps than the other")
    except UserError as error:
        assert "(rank 0: 1 epochs of 4, rank 1: 1 epochs of 2)" in str(error), error


def other_data(cluster: Cluster, folder: Path) -> None:
    """A rank that lacks samples ends all of them before the first step; pixels that were computed otherwise do not."""
    config, model = small_config(), small_network()
    whole, few, nudged = random_source(64), random_source(40), random_source(64)
    if cluster.rank == 1:
        few = Source(few.images[:-1], few.labels[:-1], 10)
        nudged = Source(np.nextafter(nudged.images, 9), nudged.labels, 10)
    for name, data in (("training", (few, whole)), ("validation", (whole, few))):
        try:
            Trainer(model, trace(model), config, *data, cluster=cluster)
            raise AssertionError("it went on")
        except UserError as error:
            found = f"rank 1, has other data .*: {name} set: number of samples 40 on rank 0 and 39 here; .*labels d"
            assert re.search(found if cluster.rank == 1 else "1 of 2 ranks could not start", str(error)), error
    said: list[str] = []
    logging.getLogger("resrep_dist.checkpoints.same_data").addFilter(lambda record: said.append(record.getMessage()))
    Trainer(model, trace(model), config, nudged, whole, cluster=cluster)
    assert ["rank(s) 1 are not those of rank 0" in text for text in said] == [True] * cluster.is_root, said


def root_error(cluster: Cluster, folder: Path) -> None:
    """An error on rank 0 reaches the others with its exit code, and one on the last rank lets no rank go on."""

    def fail_on_the_last_rank():
        if cluster.rank == cluster.size - 1:
            raise UserError("this host has no data")
        return "here"

    assert cluster.everywhere(lambda: cluster.rank) == cluster.rank
    try:
        cluster.everywhere(fail_on_the_last_rank)
        raise AssertionError("it went on")
    except UserError as error:
        is_last = cluster.rank == cluster.size - 1
        assert str(error) == ("this host has no data" if is_last else "1 of 2 ranks could not start; they say why")
        assert getattr(error, "is_of_one_rank", False) == is_last

    def fail():
        from resrep_dist.errors import CheckpointError

        raise CheckpointError("broken on rank 0")

    assert cluster.from_root(lambda: {"value": [1, "two"]}) == {"value": [1, "two"]}
    try:
        cluster.from_root(fail)
        raise AssertionError("it went on")
    except (ValueError, RuntimeError) as error:
        assert str(error) == "broken on rank 0" and error.exit_code == 2

    class OwnError(errors.ModelError):
        """Of a user's program, which the other ranks do not know by name."""

    for raised, kind, exit_code in (
        (errors.ConfigError("seed: wrong"), errors.ConfigError, 2),
        (errors.DamagedCheckpointError("it is damaged"), errors.DamagedCheckpointError, 2),
        (errors.CheckpointWriteError("the disk is full"), errors.CheckpointWriteError, 6),
        (errors.StoppedError("stopped at step 3"), errors.StoppedError, 143),
        (errors.HostError("this host has no GPU", local_rank=0), errors.HostError, 2),
        (errors.SampleError("an image is broken"), errors.SampleError, 2),
        (OwnError("an own one"), errors.ModelError, 2),
        (OSError(28, "No space left on device"), OSError if cluster.is_root else RuntimeError, 1),
    ):

        def fail_with(raised: Exception = raised) -> None:
            raise raised

        try:
            cluster.from_root(fail_with)
            raise AssertionError("it went on")
        except Exception as error:
            assert error is raised if cluster.is_root else type(error) is kind, (raised, type(error))
            assert isinstance(error, kind) and str(error) == str(raised)
            assert getattr(error, "exit_code", 1) == exit_code
            # Rank 0 says it for all.
            assert cluster.is_root or not getattr(error, "is_of_one_rank", False), raised


def checkpoints(cluster: Cluster, folder: Path) -> None:
    """No rank waits for rank 0's slow disk; what failed there ends all of them alike."""
    opened, flush = threading.Event(), os.fsync
    os.fsync = lambda descriptor: opened.wait(60) and flush(descriptor)
    config = small_config(checkpoint={"interval_steps": 10})
    model, (train_data, validation_data) = small_network(), sources_of(config)
    options = {"cluster": cluster, "workdir": folder / "run"}
    trainer = Trainer(model, trace(model), config, train_data, validation_data, **options)
    trainer.start()
    written = folder / "run" / "checkpoints" / "step-00000010"
    trainer.train_until(19)
    if cluster.is_root:  # which alone knows that the disk is still closed
        assert not written.exists(), "the training waited for the disk"
    opened.set()
    trainer.train_until(20)
    if cluster.is_root:
        assert written.exists(), "the second was begun before the first was whole"
        trainer.checkpoints.wait()
        shutil.rmtree(written.parent)
        written.parent.write_text("a file stands where the folder should be")
    try:
        trainer.train_until(100)
        raise AssertionError("it went on")
    except CheckpointWriteError as error:
        assert trainer.step == 60 and "step 50: 3 checkpoint(s) in a row" in str(error), (trainer.step, error)


def threads(cluster: Cluster, folder: Path) -> None:
    """Each rank has the threads that it asked for."""
    tf.constant(1.0) + 1.0  # starts TensorFlow, if nothing has yet
    number = tf.config.threading.get_intra_op_parallelism_threads()
    assert number == cluster.num_cores > 0, (number, cluster.num_cores)
    assert os.environ["NCCL_NVLS_ENABLE"] == "0"
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    assert os.environ.get("HOROVOD_ENABLE_ASYNC_COMPLETION") == ("1" if has_gpu else None)


def again(cluster: Cluster, folder: Path, num_runs: int = 2, num_steps: int = 50) -> None:
    """Two runs of 50 steps end with the same bits."""
    states = []
    for _ in range(num_runs):
        trainer = make_trainer(cluster)
        trainer.train_until(num_steps)
        assert trainer.step == num_steps
        states.append({name: variable.numpy() for name, variable in trainer.state.items()})
    for name, value in states[0].items():
        for other in states[1:]:
            np.testing.assert_array_equal(other[name], value, err_msg=name)


def five_times(cluster: Cluster, folder: Path) -> None:
    """Five runs of 100 steps end with the same bits."""
    again(cluster, folder, num_runs=5, num_steps=100)


def fixed_sums(cluster: Cluster, folder: Path) -> None:
    """Tensors that are ready together are not added up together: the bits of a sum are those of the tensor alone."""
    # As many as make a difference where they are added up together, from three ranks on.
    random = np.random.default_rng(cluster.rank)
    values = [tf.constant(random.normal(size=size), tf.float32) for size in (1000, 333, 77, 5001)]
    alone = [cluster.sum([value], f"alone_{number}")[0] for number, value in enumerate(values)]

    @tf.function
    def together(values: list[tf.Tensor]) -> list[tf.Tensor]:
        return [cluster.sum([value], f"together_{number}")[0] for number, value in enumerate(values)]

    for _ in range(20):
        for received, expected in zip(together(values), alone, strict=True):
            np.testing.assert_array_equal(received, expected)


def require_not_started(*arguments) -> None:
    """In place of the choice of GPU and threads: it comes before TensorFlow starts, or it would be in vain."""
    # Raises an error once TensorFlow has started.
    tf.config.threading.set_inter_op_parallelism_threads(2)
    limit_threads_and_pin_gpu(*arguments)


def slow_root(cluster: Cluster, folder: Path) -> None:
    """Rank 0 works for longer than any time-out of Gloo or Horovod (30 and 60 s), as a merge may."""
    assert cluster.from_root(lambda: time.sleep(100) or "merged") == "merged"
    (total,) = cluster.sum([tf.constant(1.0)], "after")
    assert float(total) == cluster.size


if __name__ == "__main__":
    limit_threads_and_pin_gpu = cluster_module.limit_threads_and_pin_gpu
    cluster_module.limit_threads_and_pin_gpu = require_not_started
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    the_cluster = Cluster()
    for name in sys.argv[1].split(","):
        keras.backend.set_floatx("float32")
        the_folder = Path(sys.argv[2]) / name
        the_folder.mkdir(exist_ok=True)
        globals()[name](the_cluster, the_folder)
        (the_folder / f"rank{the_cluster.rank}_ended").touch()
