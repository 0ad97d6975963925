"""The first hour: a model and a folder of images are all that a user gives."""

import json
import tarfile
from pathlib import Path

from resrep_dist.cli.main import main
from resrep_dist.config import load_config
from resrep_dist.config.loading import parse_config, parse_overrides
from resrep_dist.data.finding import FoundData, find_data
from resrep_dist.data.imagefolder import ImageFolder
from resrep_dist.data.loading import load_sources
from resrep_dist.errors import DataError
from resrep_dist.models.files import save_model
from resrep_dist.runs import library
from resrep_dist.runs.proposal import propose
from tests.images import write_image_folders
from tests.networks import random_source, small_network

import numpy as np
import pytest
from tensorflow import keras


@pytest.fixture
def photos(tmp_path):
    """Three classes; that the files are empty is seen only when they are read."""
    for split, count in (("train", 40), ("val", 2)):
        for name in ("cat", "dog", "owl"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.jpg").touch()
            (folder / "notes.txt").touch()
    return tmp_path / "photos"


@pytest.fixture
def arrays(tmp_path):
    training, validation = random_source(), random_source(64, seed=1)
    path = tmp_path / "data.npz"
    test = {"x_test": validation.images, "y_test": validation.labels}
    np.savez(path, x_train=training.images, y_train=training.labels, **test)
    return path


def test_a_folder_of_images_and_a_models_file_give_a_whole_configuration(photos, tmp_path):
    save_model(small_network(image_size=24, num_classes=3), tmp_path / "mine.h5")
    text = propose(str(tmp_path / "mine.h5"), photos, 0.4)
    config = parse_config(text, "proposal")
    assert (config.model.name, config.model.num_classes, config.model.image_size) == (f"file:{tmp_path}/mine.h5", 3, 24)
    assert (config.data.source, config.data.path, config.data.global_batch_size) == ("imagefolder", str(photos), 32)
    assert config.prune.target_macs_fraction == 0.4 and config.prune.lasso_strength == "auto"
    # 120 images are 3.75 steps, and at most 180 epochs are proposed.
    assert config.base is None and config.train.num_epochs == 180
    assert (config.shrink.mode, config.prune.kept_lasso_strength, config.prune.round_to) == ("merge", 1e-4, 4)
    assert "for 120 training images" in text and "# the pruning phase, 675 steps" in text


def test_a_model_by_name_is_trained_first_unless_it_has_weights(arrays):
    config = parse_config(propose("resnet20", arrays, num_epochs=7), "proposal")
    assert config.base.num_epochs == config.train.num_epochs == 7
    assert (config.data.source, config.model.image_size, config.model.num_classes) == ("npz", 16, 10)
    assert parse_config(propose("resnet20", arrays, weights="w.h5"), "proposal").base is None
    digits = parse_config(propose("resnet20", "digits"), "proposal")
    assert (digits.data.source, digits.data.path, digits.train.num_epochs) == ("digits", None, 34)


@pytest.mark.parametrize(
    "others, task",
    [
        (np.eye(4)[[0, 3]], "classification"),
        (np.array([0, 3]), "classification"),
        # The rows of the training set are one-hot by chance.
        (np.array([[1, 1, 0, 0], [0, 0, 0, 1]]), "multilabel"),
    ],
)
def test_one_hot_labels_are_proposed_as_classes(tmp_path, others, task):
    images = np.zeros([6, 16, 16, 3], np.uint8)
    labels = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images[:2], y_test=others)
    found = find_data(tmp_path / "data.npz")
    assert (found.task, found.num_classes) == (task, 4)
    config = parse_config(propose("resnet20", tmp_path / "data.npz"), "proposal")
    assert (config.task, config.model.num_classes) == (task, 4)
    assert {source.task for source in load_sources(config.data, config.model, config.task)} == {task}


def test_images_by_any_name_that_is_read_are_counted_and_no_others(tmp_path):
    folder = write_image_folders(tmp_path, 9, 3) / "train"
    endings = (".jfif", ".JPE", ".pjpeg", ".bmp", ".gif", ".png", ".jpg", ".webp")
    for path, ending in zip(sorted(folder.glob("*/*.JPEG")), endings, strict=False):
        path.rename(path.with_suffix(ending))
    some_class = next(folder.iterdir())
    # As macOS leaves them beside each file.
    (some_class / "._1.jpg").touch()
    (some_class / "more.jpg").mkdir()
    found, read = find_data(folder.parent), ImageFolder(folder, 16, 0.875)
    assert (found.num_images, found.num_classes) == (len(read), read.num_classes) == (8, 3)
    for path in folder.glob("*/*.*"):
        if path.is_file() and path.suffix != ".jfif":
            path.unlink()
    assert find_data(folder.parent).num_images == 1


def write_cifar(folder, source):
    """The files of the binary version, one image each, and an archive of their folder beside it."""
    names = {
        "cifar10": [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"],
        "cifar100": ["train.bin", "test.bin"],
    }[source]
    (folder / source).mkdir(parents=True)
    for name in names:
        (folder / source / name).write_bytes(bytes(3073 if source == "cifar10" else 3074))
    with tarfile.open(folder / f"{source}.tar.gz", "w:gz") as archive:
        archive.add(folder / source, "binary")
    return folder / f"{source}.tar.gz"


@pytest.mark.parametrize("source, num_classes", [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_found_in_an_archive_and_at_any_depth(tmp_path, source, num_classes, capsys):
    archive = write_cifar(tmp_path / "data", source)
    for path in (archive, tmp_path / "data" / source, tmp_path):
        assert find_data(path) == FoundData(source, str(path), num_classes, 50_000, 32)
    assert main(["init", str(archive), "resnet20"]) == 0
    config = parse_config(capsys.readouterr().out, "proposal")
    # What is proposed can be read.
    assert [len(set_) for set_ in load_sources(config.data, config.model)] == [5 if source == "cifar10" else 1, 1]
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(DataError, match="it is a file of another kind, or not whole"):
        find_data(archive)
    write_cifar(tmp_path / "more", {"cifar10": "cifar100", "cifar100": "cifar10"}[source])
    with pytest.raises(
        DataError, match="it holds cifar10 and cifar100, not one of them; expected .* CIFAR's binary version"
    ):
        find_data(tmp_path)


def test_data_of_no_known_kind_is_refused_with_what_was_found(tmp_path, photos):
    with pytest.raises(DataError, match="there is no such file or folder; expected train/<class>/"):
        find_data(tmp_path / "nothing")
    with pytest.raises(DataError, match="it holds cat, dog, owl; expected train/<class>/ and val/<class>/"):
        find_data(photos / "train")
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(DataError, match="it is a file of another kind, or not whole; expected .* tar archive"):
        find_data(tmp_path / "notes.txt")
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="expected x_train, y_train, x_test and y_test"):
        find_data(tmp_path / "broken.npz")


def test_a_file_with_several_inputs_or_outputs_is_refused_in_one_line(arrays, tmp_path, capsys):
    images, sizes = keras.Input([16, 16, 3]), keras.Input([4])
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3)(images))
    both = keras.layers.Concatenate()([pooled, sizes])
    for inputs, outputs, expected in (
        ([images, sizes], keras.layers.Dense(10)(both), "received 2 inputs and 1 outputs"),
        (images, [keras.layers.Dense(10)(pooled), keras.layers.Dense(2)(pooled)], "received 1 inputs and 2 outputs"),
    ):
        path = str(tmp_path / "several.h5")
        save_model(keras.Model(inputs, outputs), Path(path))
        for call in (["init", str(arrays), path], ["prune", path, "--data", str(arrays), "--workdir", f"{path}.run"]):
            assert main(call) == 2
            shown = capsys.readouterr()
            assert expected in shown.err and "prune it in Keras' own" in shown.err and "image_size" not in shown.out
            assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    "overrides, expected",
    [
        ([], (0.5, 1e-4, 4, "merge")),
        (["prune.rule=paper"], (0.5, None, 1, "off")),
        (["prune.target={parameters_fraction: 0.6}"], (None, 1e-4, 4, "merge")),
        (["prune.target={latency_fraction: 0.6, costs: costs.json}"], (None, 1e-4, 1, "merge")),
        (["prune.target.latency_fraction=0.6", "prune.target.costs=costs.json"], (None, 1e-4, 1, "merge")),
        (["prune.rule=paper", "prune.target={macs_fraction: 0.6}", "prune.round_to=8"], (None, None, 8, "off")),
    ],
)
def test_what_a_users_settings_exclude_is_not_proposed_and_one_call_in_a_program_does_the_same(
    arrays, tmp_path, monkeypatch, overrides, expected
):
    save_model(small_network(), tmp_path / "net.h5")
    started = []
    monkeypatch.setattr("resrep_dist.cli.running.run_training", lambda config, *_: started.append(config) or 0)
    call = ["prune", str(tmp_path / "net.h5"), "--data", str(arrays)]
    assert main(call + [part for override in overrides for part in ("--set", override)]) == 0
    (config,) = started
    in_a_program = library._config(small_network(), random_source(), 0.5, None, parse_overrides(overrides))
    for prune, shrink in ((config.prune, config.shrink), (in_a_program.prune, in_a_program.shrink)):
        assert (prune.target_macs_fraction, prune.kept_lasso_strength, prune.round_to, shrink.mode) == expected
    assert config.prune == in_a_program.prune


def test_a_setting_that_contradicts_another_of_the_users_own_is_refused(arrays, tmp_path, capsys):
    save_model(small_network(), tmp_path / "net.h5")
    call = ["prune", str(tmp_path / "net.h5"), "--data", str(arrays), "--set", "prune.rule=paper"]
    assert main([*call, "--set", "prune.kept_lasso_strength=0.001"]) == 2
    assert "prune.kept_lasso_strength: received 0.001 with prune.rule 'paper'" in capsys.readouterr().err


@pytest.mark.parametrize("epochs", ["0", "-1", "nan", "inf", "many"])
@pytest.mark.parametrize("call", [["init", "digits", "resnet20"], ["prune", "resnet20", "--data", "digits"]])
def test_epochs_that_are_no_length_are_refused(call, epochs, capsys):
    with pytest.raises(SystemExit) as left:
        main([*call, f"--epochs={epochs}"])
    assert left.value.code == 2
    assert f"--epochs: received {epochs}, expected a number greater than 0" in capsys.readouterr().err


def test_init_prints_a_configuration_that_loads(arrays, tmp_path, capsys):
    save_model(small_network(), tmp_path / "net.h5")
    assert main(["init", str(arrays), str(tmp_path / "net.h5"), "--target", "0.6"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    config = load_config(tmp_path / "mine.yaml")
    assert config.prune.target_macs_fraction == 0.6 and config.data.path == str(arrays)


def test_digits_are_proposed_at_a_size_that_a_first_trial_has_time_for(capsys):
    assert main(["init", "digits", "resnet20"]) == 0
    assert "  image_size: 32 " in capsys.readouterr().out


def test_one_call_prunes_and_the_same_call_says_that_it_is_done(arrays, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(small_network(), tmp_path / "net.h5")
    # The images are noise: the base guesses, and so does what is left of it.
    call = ["prune", "net.h5", "--data", arrays.name, "--target", "0.6", "--epochs", "3"]
    assert main(call) == 2
    assert "so it is not pruned" in capsys.readouterr().err
    call += ["--set", "prune.min_base_top1=0"]
    assert main(call) == 0
    report = json.loads((tmp_path / "runs" / "net" / "slim" / "report.json").read_text())
    assert report["slim"]["macs"] <= 0.6 * report["base"]["macs"] and not report["target_missed"]
    capsys.readouterr()
    assert main([*call, "--strict"]) == 10
    shown = capsys.readouterr()
    assert "This run is finished" in shown.out and "is broken" in shown.err
