"""Networks whose channels pass depthwise convolutions or meet in additions, trained to half their multiply-adds."""

import json

from tests.ranks.launcher import run_ranks
from tests.system import runs

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ranks, pytest.mark.timeout(3600)]

# Of a quarter of the width and at 32 px, which its five halvings need; a base that is not yet trained ranks badly.
MOBILENET = [
    "model.name=python:tests.networks:small_mobilenet", "model.image_size=32", "base.num_epochs=60",
    "train.num_epochs=120", "prune.lasso_strength=3e-3", "prune.mask_start_epochs=15",
    "prune.channels_per_update=40", "prune.min_channels=8",
]  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [
        MOBILENET,
        ["prune.residual_groups=true"],
    ],
    ids=["mobilenet_v1", "resnet20_residual_groups"],
)
def test_trained_on_the_digits_it_is_merged_without_a_difference(tmp_path, overrides):
    command = runs.train_command(tmp_path / "run", "prune.target_macs_fraction=0.5", *overrides)
    code, log = run_ranks(2, command, tmp_path / "log", 1800)
    assert code == 0, log[-4000:]
    report = json.loads((tmp_path / "run" / "slim" / "report.json").read_text())
    base, slim, certificate = report["base"], report["slim"], report["certificate"]
    print(
        f"base {base['top1']:.2f}, slim {slim['top1']:.2f}, multiply-adds {slim['macs'] / base['macs']:.4f}, "
        f"largest difference {certificate['max_relative_difference']:.2g}"
    )
    assert slim["macs"] <= 0.5 * base["macs"] and not report["target_missed"]
    assert certificate["num_images"] >= 256 and certificate["max_relative_difference"] <= 1e-4
    # A network that has forgotten the digits would be merged as exactly.
    assert slim["top1"] >= 95.0
