"""Data that changed between stop and resume is refused, with what differs, unless it is accepted."""

import logging

from resrep_dist.data.imagefolder import ImageFolder
from resrep_dist.data.source import Source
from resrep_dist.errors import DataError
from resrep_dist.graph import trace
from resrep_dist.runs.train import _check_data_of_base
from resrep_dist.training.trainer import Trainer
from tests.images import write_image_folders
from tests.networks import random_source, small_config, small_network, sources_of

import numpy as np
import pytest


def trainer_for(workdir, train_data, validation_data=None, **options):
    config = small_config(checkpoint={"interval_steps": 2}, data={"source": "arrays"})
    model = small_network()
    validation_data = validation_data or random_source(40)
    return Trainer(model, trace(model), config, train_data, validation_data, workdir=workdir, **options)


def stopped_after_two_steps(workdir):
    trainer = trainer_for(workdir, random_source())
    trainer.start()
    trainer.train_until(2)
    trainer.checkpoints.wait()


def changed(kind):
    whole = random_source()
    if kind == "fewer":
        return Source(whole.images[:100], whole.labels[:100], 10), "training set: number of samples 320 there and 100"
    if kind == "order":
        order = np.random.default_rng(1).permutation(len(whole))
        return Source(whole.images[order], whole.labels[order], 10), "checksum of the labels differs"
    labels = whole.labels.copy()
    labels[7] = (labels[7] + 1) % 10
    if kind == "one_label":
        return Source(whole.images, labels, 10), "checksum of the labels differs"
    return Source(2.0 * whole.images, whole.labels, 10), "checksum of the images differs"


@pytest.mark.parametrize("kind", ["fewer", "order", "one_label", "pixels"])
def test_changed_data_is_refused_with_what_differs(tmp_path, kind):
    stopped_after_two_steps(tmp_path)
    data, expected = changed(kind)
    with pytest.raises(DataError, match="it has changed since step 2: .*--accept-changed-data") as caught:
        trainer_for(tmp_path, data).start()
    assert expected in str(caught.value)
    trainer = trainer_for(tmp_path, random_source())
    trainer.start()
    assert trainer.step == 2, "the same data again"


def test_a_changed_validation_set_is_refused_too(tmp_path):
    stopped_after_two_steps(tmp_path)
    with pytest.raises(DataError, match="validation set: number of samples 40 there and 50 here"):
        trainer_for(tmp_path, random_source(), random_source(50)).start()


def test_an_accepted_change_is_logged_once_and_is_the_data_from_then_on(tmp_path, caplog):
    stopped_after_two_steps(tmp_path)
    data, _ = changed("fewer")
    with caplog.at_level(logging.WARNING):
        trainer = trainer_for(tmp_path, data, accepts_changed_data=True)
        trainer.start()
        trainer.train_until(4)
        trainer.checkpoints.wait()
    assert "which is accepted: training set: number of samples 320" in caplog.text
    trainer_for(tmp_path, data).start()


def test_image_files_that_are_added_renamed_or_moved_to_another_class(tmp_path):
    folder = write_image_folders(tmp_path, 9, 6) / "train"

    def fingerprint():
        return ImageFolder(folder, 16, 0.875).fingerprint()

    before = fingerprint()
    first = next(folder.glob("*/*.JPEG"))
    first.rename(first.with_name("zzz.JPEG"))
    assert fingerprint() != before
    first.with_name("zzz.JPEG").rename(first)
    assert fingerprint() == before
    classes = sorted(path.name for path in folder.iterdir())
    (folder / classes[0]).rename(folder / "renamed")
    assert fingerprint()["class names"] != before["class names"]
    (folder / "renamed").rename(folder / classes[0])
    folder.rename(tmp_path / "moved")
    folder = tmp_path / "moved"
    assert fingerprint() == before, "where the folder is does not matter"


def test_a_run_that_was_stopped_between_base_and_pruning_is_checked_too(tmp_path):
    config = small_config(checkpoint={"interval_steps": 2}, data={"source": "digits"})
    train_data, validation_data = sources_of(config)
    trainer = Trainer(small_network(), None, config, train_data, validation_data, workdir=tmp_path)
    trainer.start()
    trainer.train_until(2)
    trainer.checkpoints.wait()
    setting = {
        "workdir": tmp_path, "train_data": train_data, "validation_data": validation_data,
        "accepts_changed_data": False,
    }  # fmt: skip
    _check_data_of_base(setting)
    with pytest.raises(DataError, match="number of samples 1437 there and 360 here"):
        _check_data_of_base({**setting, "train_data": validation_data})
    _check_data_of_base({**setting, "train_data": validation_data, "accepts_changed_data": True})
