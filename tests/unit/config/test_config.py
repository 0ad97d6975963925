import dataclasses
import types

from resrep_dist.config import build_config, load_config
from resrep_dist.errors import ConfigError
from tests.networks import DIGITS_CONFIG, small_config

import numpy as np
import pytest


@pytest.mark.parametrize(
    "override, expected",
    [
        ("train.learning_rat=1", "train.learning_rat: unknown key; did you mean `learning_rate`?"),
        ("prune.target_macs_fraction=0", "received 0, expected greater than 0"),
        ("prune.target_macs_fraction=2", "received 2, expected less than 1"),
        ("prune.lasso_strength=strong", "prune.lasso_strength: received 'strong', expected number, or 'auto'"),
        ("prune.mask_interval_steps=0", "prune.mask_interval_steps: received 0, expected greater than 0, or 'auto'"),
        ("train.num_epochs=abc", "train.num_epochs: received 'abc', expected number"),
        ("train.num_epochs=.nan", "received nan, expected a finite number"),
        ("model.num_classes=0", "model.num_classes: received 0, expected greater than or equal to 2"),
        ("model=3", "model: received 3, expected a section"),
        ("seed=1.5", "seed: received 1.5, expected integer"),
        ("seed=true", "expected integer"),
        ("data.source=imagenet", "received 'imagenet', expected 'digits', 'imagefolder'"),
        ("data.source=imagefolder", "data.path: missing; data.source imagefolder needs the folder that holds train/"),
        ("data.path=/data", "data.source digits reads no files"),
        ("data.name=mnist", "only tfds has a name"),
        ("data.augmentation=resized_crop_flip", "data.source digits supports none, shift, pad_crop_flip"),
        ("base=null", "neither is given"),
        (
            "base=null",
            "Add to `model`: `weights: trained.h5`, or to the file: `base: {num_epochs: 84, learning_rate: 0.1}`",
        ),
        ("model.name=file:x.h5", "base: given, but model.name file:x.h5 is a file with its weights"),
        ("model.weights=x.h5", "both are given"),
        ("train.warmup_epochs=500", "train.warmup_epochs: received 500"),
        ("prune.mask_start_epochs=107", "no mask is ever chosen"),
        ("prune=null", "base: given without the section `prune`"),
        ("training.precision=float16", "received 'float16', expected 'float32', 'mixed_float16'"),
        ("training={xla: true, sync_batch_norm: true}", "XLA cannot compile the collectives"),
        ("faults.stall_limit_seconds=60", "stall_warning_seconds 120, stall_limit_seconds 60"),
        ("prune={target_macs_fraction: 0.5, rule: paper, kept_lasso_strength: 0}", "one penalty for all rows"),
        ("prune.rule=[", "not valid YAML"),
        ("prune", "expected section.key=value"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override, expected):
    with pytest.raises(ConfigError) as error:
        load_config(DIGITS_CONFIG, ["shrink.mode=off", override])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_model_is_said_before_its_missing_base_and_a_look_at_it_needs_none():
    with pytest.raises(ConfigError, match="model.name: received 'resnet21'; did you mean `resnet20`"):
        load_config(DIGITS_CONFIG, ["base=null", "model.name=resnet21"])
    assert load_config(DIGITS_CONFIG, ["base=null"], to_start=False).base is None


def test_a_setting_goes_into_a_section_that_is_null_and_not_into_a_value(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(load_config(DIGITS_CONFIG).to_yaml())
    assert "distillation:\n" in path.read_text()
    assert load_config(path, ["train.distillation.weight=0.3"]).train.distillation.weight == 0.3
    with pytest.raises(ConfigError, match="--set seed.x=1: `seed` is a value, not a section"):
        load_config(path, ["seed.x=1"])


def test_a_missing_file_a_missing_section_and_a_double_key(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    path = tmp_path / "config.yaml"
    path.write_text("model: {name: resnet20, num_classes: 10, image_size: 16}\n")
    with pytest.raises(ConfigError, match="missing; expected a section with keys"):
        load_config(path)
    path.write_text("seed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)


def test_nothing_in_a_hostile_file_is_executed(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"model: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(ConfigError):
        load_config(path)
    assert not (tmp_path / "made").exists()


def test_the_resolved_configuration_reads_back_equal(tmp_path):
    config = load_config(DIGITS_CONFIG, ["train.learning_rate=1e-3", "prune.exclude=[stem]"])
    assert config.train.learning_rate == 1e-3
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_a_misspelled_required_key_is_named_and_not_called_missing():
    document = small_config().to_dict()
    document["train"]["num_epoch"] = document["train"].pop("num_epochs")
    with pytest.raises(ConfigError, match="train.num_epoch: unknown key; did you mean `num_epochs`"):
        build_config(document)


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "tab\there", "été", "line\nbreak"])
def test_texts_of_all_kinds_are_read_back_from_the_recorded_yaml(tmp_path, text):
    config = small_config(data={"index_folder": text})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config


def test_numbers_of_numpy_are_numbers_in_sections_and_in_lists():
    document = small_config().to_dict()
    document["seed"] = np.int64(3)
    document["train"] |= {"learning_rate": np.float32(0.25), "milestone_epochs": (np.float32(1), np.int8(2))}
    document["train"] |= {"schedule": np.str_("step"), "num_epochs": np.array(4.5)}
    document["training"] |= {"xla": np.bool_(True), "class_weights": np.linspace(0, 1, 10, dtype=np.float32)}
    config = build_config(types.MappingProxyType({**document, "data": types.MappingProxyType(document["data"])}))
    assert config.seed == 3 and config.training.xla is True and len(config.training.class_weights) == 10
    assert (config.train.learning_rate, config.train.milestone_epochs) == (0.25, (1.0, 2.0))
    assert config.to_yaml().count("0.25") == 1
    for value, received in ((np.float32("nan"), "nan"), (np.arange(2), r"\[0, 1\]"), (np.bool_(True), "True")):
        document["train"]["learning_rate"] = value
        with pytest.raises(ConfigError, match=f"train.learning_rate: received {received}, expected"):
            build_config(document)
