import errno
import functools
import hashlib
import os
import random
import resource
import shutil
import subprocess

from resrep_dist.checkpoints.files import CheckpointFolder, restore, snapshot
from resrep_dist.errors import CheckpointError, CheckpointWriteError, DamagedCheckpointError

import numpy as np
import pytest
import tensorflow as tf


@pytest.fixture
def variables():
    return {"a/kernel": tf.Variable([[1.0, 2.0]]), "iterations": tf.Variable(7, dtype=tf.int64)}


def save(folder, variables, *steps):
    for step in steps:
        variables["a/kernel"].assign([[step, -step]])
        path = folder.save(step, snapshot(variables), {"num_chosen": 3})
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refuse(monkeypatch, folder, number, *calls):
    """Make system calls fail in a folder, as those to a network file system do that does not answer."""

    def fail(call, path=".", *arguments, **options):
        if str(path).startswith(str(folder)):
            raise OSError(number, os.strerror(number), str(path))
        return call(path, *arguments, **options)

    for name in calls:
        monkeypatch.setattr(os, name, functools.partial(fail, getattr(os, name)))


def test_what_a_user_has_put_beside_the_checkpoints_is_no_checkpoint_and_stays(tmp_path, variables):
    folder, kept = CheckpointFolder(tmp_path, 2), ["step-00000004-keep", "step-best", "step-old.damaged"]
    shutil.copytree(save(folder, variables, 2, 4), tmp_path / kept[0])
    shutil.copytree(tmp_path / kept[0], tmp_path / kept[1])
    (tmp_path / kept[2]).mkdir()
    assert folder.newest_step() == 4
    save(folder, variables, 6, 8, 10)
    assert names(tmp_path) == sorted(["step-00000008", "step-00000010", *kept])
    assert folder.restore_newest(variables)["step"] == 10


def test_what_is_saved_comes_back_and_only_the_newest_are_kept(tmp_path, variables):
    folder = CheckpointFolder(tmp_path, num_kept=2)
    assert folder.restore_newest(variables) is None
    save(folder, variables, 5, 10, 15)
    assert names(tmp_path) == ["step-00000010", "step-00000015"]
    variables["a/kernel"].assign([[0, 0]])
    position = folder.restore_newest(variables)
    assert position["step"] == 15 and position["num_chosen"] == 3
    np.testing.assert_array_equal(variables["a/kernel"], [[15, -15]])


def test_other_programs_can_verify_it(tmp_path, variables):
    path = save(CheckpointFolder(tmp_path), variables, 5)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=path, check=True, capture_output=True)


def test_a_step_that_is_saved_already_is_left_alone(tmp_path, variables):
    folder = CheckpointFolder(tmp_path)
    path = save(folder, variables, 5)
    before = (path / "state.npz").stat().st_mtime_ns
    assert save(folder, variables, 5) == path
    assert (path / "state.npz").stat().st_mtime_ns == before


def test_a_half_written_checkpoint_is_not_the_newest_and_goes(tmp_path, variables):
    folder = CheckpointFolder(tmp_path)
    save(folder, variables, 5)
    (tmp_path / "step-00000010.partial").mkdir()
    assert folder.restore_newest(variables)["step"] == 5
    folder.delete_partial()
    assert names(tmp_path) == ["step-00000005"]
    # What a read-only disk kept is gone with the next one that is written.
    (tmp_path / "step-00000010.partial").mkdir()
    save(folder, variables, 15)
    assert names(tmp_path) == ["step-00000005", "step-00000015"]


def mutate(path, choices):
    """Harm one file of a checkpoint in one way."""
    file = path / choices.choice(["state.npz", "position.json", "SHA256SUMS"])
    data = bytearray(file.read_bytes())
    harm = choices.choice(["flip", "flip", "truncate", "remove", "insert"])
    if harm == "remove":
        file.unlink()
        return
    place = choices.randrange(len(data))
    if harm == "flip":
        data[place] ^= 1 << choices.randrange(8)
    elif harm == "truncate":
        del data[place:]
    else:
        data.insert(place, choices.randrange(256))
    file.write_bytes(data)


def test_every_one_of_500_mutations_is_noticed_and_the_one_before_is_used(tmp_path, variables):
    choices = random.Random(0)
    folder = CheckpointFolder(tmp_path)
    save(folder, variables, 5)
    newest = save(folder, variables, 10)
    good = {file.name: file.read_bytes() for file in newest.iterdir()}
    for _ in range(500):
        mutate(newest, choices)
        variables["a/kernel"].assign([[9, 9]])
        with pytest.raises(DamagedCheckpointError, match="it is damaged"):
            restore(newest, variables)
        np.testing.assert_array_equal(variables["a/kernel"], [[9, 9]])
        assert folder.restore_newest(variables)["step"] == 5
        for name, data in good.items():
            (newest / name).write_bytes(data)
    assert folder.restore_newest(variables)["step"] == 10


def test_a_run_never_starts_anew_where_all_checkpoints_are_damaged(tmp_path, variables):
    folder = CheckpointFolder(tmp_path)
    save(folder, variables, 5, 10)
    for path in tmp_path.iterdir():
        (path / "state.npz").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000005: it is damaged, state.npz cannot be read"):
        folder.restore_newest(variables)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path, variables, monkeypatch, number):
    folder = CheckpointFolder(tmp_path)
    save(folder, variables, 5, 15)
    (tmp_path / "step-00000020.partial").mkdir()
    before = names(tmp_path)
    with monkeypatch.context() as patch:
        refuse(patch, tmp_path, number, "listdir", "scandir")
        refused = rf"folder {tmp_path}: cannot be listed \({os.strerror(number)}\); .* its permissions or its disk$"
        others = (folder.newest_step, folder.newest_position, folder.delete_partial)
        for ask in (lambda: folder.restore_newest(variables), *others):
            with pytest.raises(CheckpointError, match=refused):
                ask()
        with pytest.raises(CheckpointWriteError, match=rf"cannot be written \({os.strerror(number)}\)"):
            save(folder, variables, 10)
    assert names(tmp_path) == before, "nothing good was set aside"
    assert folder.restore_newest(variables)["step"] == 15


def test_damaged_checkpoints_ahead_are_set_aside_when_the_run_passes_them(tmp_path, variables):
    folder = CheckpointFolder(tmp_path, num_kept=1)
    save(folder, variables, 20, 30)
    (tmp_path / "step-00000030" / "state.npz").write_bytes(b"")
    save(folder, variables, 25)
    assert names(tmp_path) == ["step-00000025", "step-00000030.damaged"]
    assert folder.restore_newest(variables)["step"] == 25
    save(folder, variables, 30)
    assert folder.restore_newest(variables)["step"] == 30


def test_what_cannot_be_written_leaves_the_one_before_whole_and_says_what_it_needs(tmp_path, variables):
    folder = CheckpointFolder(tmp_path)
    save(folder, variables, 5)
    variables["large"] = tf.Variable(tf.zeros([100_000]))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses the write as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(
            CheckpointWriteError, match=r"step-00000010: cannot be written .* needs 400,016 bytes, .* are free"
        ):
            save(folder, variables, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-00000005"]
    del variables["large"]
    assert folder.restore_newest(variables)["step"] == 5


@pytest.mark.parametrize("calls", [["stat", "lstat", "statvfs"], ["stat", "lstat", "statvfs", "listdir", "mkdir"]])
def test_a_disk_that_does_not_answer_costs_one_checkpoint_and_says_why(tmp_path, variables, monkeypatch, calls):
    folder = CheckpointFolder(tmp_path)
    save(folder, variables, 5)
    with monkeypatch.context() as patch:
        refuse(patch, tmp_path, errno.ESTALE, *calls)
        said = r"step-00000010: cannot be written \(Stale file handle\); it needs 16 bytes, the free space is unknown"
        with pytest.raises(CheckpointWriteError, match=said):
            save(folder, variables, 10)
    save(folder, variables, 10)
    assert names(tmp_path) == ["step-00000005", "step-00000010"]
    assert folder.restore_newest(variables)["step"] == 10


def test_another_models_checkpoint_is_refused_by_name(tmp_path, variables):
    path = save(CheckpointFolder(tmp_path), variables, 5)
    variables["a/kernel"] = tf.Variable([[1.0, 2.0, 3.0]])
    with pytest.raises(CheckpointError, match=r"`a/kernel` is float32 \[1, 2\] there and float32 \[1, 3\] here"):
        restore(path, variables)


def test_arrays_that_need_pickle_are_refused(tmp_path, variables):
    path = save(CheckpointFolder(tmp_path), variables, 5)
    np.savez(path / "state.npz", **{"a/kernel": np.array([print], object)})
    sums = "".join(
        f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in ("state.npz", "position.json")
    )
    (path / "SHA256SUMS").write_text(sums)
    with pytest.raises(CheckpointError, match="pickle"):
        restore(path, variables)


def numbered(*numbers):
    """Variables as those of a model whose layers Keras has numbered."""
    variables = {}
    for index, number in enumerate(numbers):
        layer = f"conv2d_{number}" if number else "conv2d"
        for name in (f"{layer}/kernel", f"velocity/{layer}/kernel", f"{layer}_compactor/mask"):
            variables[name] = tf.Variable(np.full(3, float(10 * index + len(name.split("/"))), np.float32))
    return {**variables, "stage_1/kernel": tf.Variable([1.0]), "iterations": tf.Variable(7)}


@pytest.mark.parametrize("numbers", [(0, 1, 2), (1, 2, 3), (2, 5, 11), (9, 10, 11)])
def test_numbers_of_layers_only_have_to_be_in_the_same_order(tmp_path, numbers):
    folder, saved = CheckpointFolder(tmp_path), numbered(1, 2, 3)
    folder.save(5, snapshot(saved), {"num_chosen": 0})
    variables = numbered(*numbers)
    expected = [variable.numpy() for variable in variables.values()]
    for variable in variables.values():
        variable.assign(tf.zeros_like(variable))
    assert folder.restore_newest(variables)["step"] == 5
    for received, value in zip(variables.values(), expected, strict=True):
        np.testing.assert_array_equal(received.numpy(), value)


def test_another_number_of_layers_or_another_layer_is_another_model(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(5, snapshot(numbered(1, 2, 3)), {"num_chosen": 0})
    with pytest.raises(CheckpointError, match="it belongs to another model"):
        folder.restore_newest(numbered(4, 5))
    with pytest.raises(CheckpointError, match="it belongs to another model"):
        folder.restore_newest({**numbered(4, 5, 6), "dense/kernel": tf.Variable([1.0])})
