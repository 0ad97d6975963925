"""ResNet-50 at 224 px from image files in both of ImageNet's layouts: in small, all that the full run does."""

import csv
import json
import shutil
from pathlib import Path

from resrep_dist.config import load_config
from resrep_dist.models.building import build_model
from tests import images
from tests.ranks.launcher import run_ranks
from tests.system.runs import RESREP

import numpy as np
import pytest
import tensorflow as tf

pytestmark = [pytest.mark.slow, pytest.mark.ranks, pytest.mark.timeout(3600)]
CONFIG = Path(__file__).parents[2] / "configs" / "resnet50_imagenet.yaml"
NUM_TRAIN, NUM_VALIDATION, BATCH_SIZE, NUM_STEPS = 48, 16, 8, 20


def photograph(number):
    """A JPEG with something in it."""
    noise = images.noise(6, 8, 3, seed=number).astype(np.float32)
    pixels = tf.cast(tf.image.resize(noise, [240, 320], "bicubic"), tf.uint8)
    return tf.io.encode_jpeg(pixels).numpy()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet50.h5"
    config = load_config(CONFIG, [f"model.num_classes={images.NUM_CLASSES}"])
    build_model(config.model).save_weights(path)
    return path


def command(workdir, source, data, weights):
    settings = {
        "model.num_classes": images.NUM_CLASSES, "model.weights": weights, "data.source": source, "data.path": data,
        "data.global_batch_size": BATCH_SIZE, "data.evaluation_batch_size": 8,
        "train.num_epochs": NUM_STEPS * BATCH_SIZE / NUM_TRAIN, "prune.mask_start_epochs": 0.5,
        "prune.mask_interval_steps": 5, "prune.mask_stop_fraction": 0.9, "prune.max_extension_epochs": 0,
        "prune.min_base_top1": 0,
        # At the rate of a full batch so strong a penalty carries what is masked at step 5 to zero before step 20.
        "train.reference_batch_size": BATCH_SIZE, "prune.rule": "radial", "prune.lasso_strength": 16,
        "prune.compactor_momentum": 0,
        "prune.channels_per_update": 64, "checkpoint.interval_steps": 10, "logging.interval_steps": 5,
        "logging.evaluation_epochs": 3, "logging.record_samples": "true",
    }  # fmt: skip
    sets = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    return [RESREP, "train", str(CONFIG), "--workdir", str(workdir), *sets]


def global_batches(workdir, num_ranks, first_step):
    """Indices of every global batch from the records of the ranks, by step."""
    batches = {}
    for rank in range(num_ranks):
        path = workdir / "samples" / f"from-step-{first_step:08d}-rank-{rank}-of-{num_ranks}.csv"
        for step, *indices in csv.reader(path.open()):
            batches.setdefault(int(step), []).extend(map(int, indices))
    return batches


def check_merge(workdir):
    report = json.loads((workdir / "slim" / "report.json").read_text())
    certificate = report["certificate"]
    assert certificate["max_relative_difference"] <= 1e-4
    assert any(entry["kept"] < entry["original"] for entry in certificate["channels"].values())
    print(f"{workdir.name}: {certificate['max_relative_difference']:.2g}, {report['slim']['macs']:,} multiply-adds")


@pytest.mark.parametrize("source", ["imagefolder", "tfrecord"])
def test_a_run_on_two_ranks_resumes_on_one_three_and_four(tmp_path, weights, source, monkeypatch):
    monkeypatch.setattr(images, "jpeg", photograph)
    write = {"imagefolder": images.write_image_folders, "tfrecord": images.write_records}[source]
    data = write(tmp_path / "data", NUM_TRAIN, NUM_VALIDATION)
    code, log = run_ranks(2, command(tmp_path / "run2", source, data, weights), tmp_path / "run2.log", 1800)
    assert code == 0, log[-3000:]
    check_merge(tmp_path / "run2")
    expected = global_batches(tmp_path / "run2", 2, 0)
    assert sorted(expected) == list(range(NUM_STEPS))
    for num_ranks in (1, 3, 4):
        workdir = shutil.copytree(tmp_path / "run2", tmp_path / f"run{num_ranks}")
        for left_over in ("slim", "samples", "checkpoints/step-00000020"):
            shutil.rmtree(workdir / left_over)
        code, log = run_ranks(num_ranks, command(workdir, source, data, weights), tmp_path / f"{num_ranks}.log", 1800)
        assert code == 0, log[-3000:]
        assert "Resumed at step 10." in log
        check_merge(workdir)
        received = global_batches(workdir, num_ranks, 10)
        assert received == {step: indices for step, indices in expected.items() if step >= 10}
        samples = np.concatenate([(expected | received)[step] for step in range(NUM_STEPS)])
        for epoch in range(len(samples) // NUM_TRAIN):
            of_epoch = samples[epoch * NUM_TRAIN : (epoch + 1) * NUM_TRAIN]
            assert sorted(of_epoch) == list(range(NUM_TRAIN))
