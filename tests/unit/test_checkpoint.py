import json

from resrep_dist.checkpoint import CheckpointFolder, restore
from resrep_dist.errors import CheckpointError

import numpy as np
import pytest
import tensorflow as tf


@pytest.fixture
def variables():
    return {"a/kernel": tf.Variable([[1.0, 2.0]]), "iterations": tf.Variable(7, dtype=tf.int64)}


def test_what_is_saved_comes_back_and_only_the_newest_are_kept(tmp_path, variables):
    folder = CheckpointFolder(tmp_path, num_kept=2)
    assert folder.newest() is None
    for step in (5, 10, 15):
        variables["a/kernel"].assign([[step, -step]])
        folder.save(step, variables, {"num_chosen": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
    variables["a/kernel"].assign([[0, 0]])
    manifest = restore(folder.newest(), variables)
    assert manifest["step"] == 15 and manifest["position"] == {"num_chosen": 3}
    np.testing.assert_array_equal(variables["a/kernel"], [[15, -15]])


def test_a_step_that_is_saved_already_is_left_alone(tmp_path, variables):
    folder = CheckpointFolder(tmp_path)
    path = folder.save(5, variables, {})
    before = (path / "state.npz").stat().st_mtime_ns
    assert folder.save(5, variables, {}) == path
    assert (path / "state.npz").stat().st_mtime_ns == before


def test_a_half_written_checkpoint_is_not_the_newest(tmp_path, variables):
    folder = CheckpointFolder(tmp_path)
    complete = folder.save(5, variables, {})
    (tmp_path / "step-00000010.partial").mkdir()
    assert folder.newest() == complete


@pytest.mark.parametrize("harm", ["flip", "truncate", "no_arrays", "no_manifest", "bad_manifest"])
def test_a_damaged_checkpoint_is_refused_before_anything_is_loaded(tmp_path, variables, harm):
    path = CheckpointFolder(tmp_path).save(5, variables, {})
    arrays, manifest = path / "state.npz", path / "manifest.json"
    if harm == "flip":
        data = bytearray(arrays.read_bytes())
        data[len(data) // 2] ^= 1
        arrays.write_bytes(data)
    elif harm == "truncate":
        arrays.write_bytes(arrays.read_bytes()[:-10])
    elif harm == "no_arrays":
        arrays.unlink()
    elif harm == "no_manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    variables["a/kernel"].assign([[9, 9]])
    with pytest.raises(CheckpointError, match="move this folder away"):
        restore(path, variables)
    np.testing.assert_array_equal(variables["a/kernel"], [[9, 9]])


def test_another_models_checkpoint_is_refused_by_name(tmp_path, variables):
    path = CheckpointFolder(tmp_path).save(5, variables, {})
    variables["a/kernel"] = tf.Variable([[1.0, 2.0, 3.0]])
    with pytest.raises(CheckpointError, match=r"`a/kernel` is float32 \[1, 2\] there and float32 \[1, 3\] here"):
        restore(path, variables)


def test_arrays_that_need_pickle_are_refused(tmp_path, variables):
    import hashlib

    path = CheckpointFolder(tmp_path).save(5, variables, {})
    np.savez(path / "state.npz", **{"a/kernel": np.array([print], object)})
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"]["state.npz"] = hashlib.sha256((path / "state.npz").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="pickle"):
        restore(path, variables)
