"""The sources one by one: what they hold, and what they refuse by name."""

import io
import os
import tarfile

from resrep_dist.data.npz import npz
from resrep_dist.data.order import evaluation_batches
from resrep_dist.data.record_index import RecordReader, index_records
from resrep_dist.data.source import Source
from resrep_dist.errors import ConfigError, DataError
from tests.images import write_image_folders, write_records
from tests.networks import small_config, sources_of

import numpy as np
import pytest
import tensorflow as tf


def load(image_size=32, num_classes=10, **data):
    model = {"image_size": image_size, "num_classes": num_classes}
    return sources_of(small_config(data={key: str(value) for key, value in data.items()}, model=model))


def break_folders(folder, kind):
    if kind == "empty":
        (folder / "train" / "n00000009").mkdir()
    elif kind == "unknown":
        (folder / "val" / "n00000001").rename(folder / "val" / "n00000007")
    elif kind == "missing":
        (folder / "val").rename(folder / "validation")
    else:
        (folder / "loose" / "val").mkdir(parents=True)
        (folder / "train").rename(folder / "loose" / "train")
        (folder / "loose" / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
        return folder / "loose"
    return folder


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("empty", "train/n00000009: no images"),
        ("unknown", r"val/n00000007: no such class in the training set \(3 classes\)"),
        ("missing", "/val: cannot be read .*expected a folder for each class"),
        ("loose", "/val: 1 files but no folders; expected one for each class"),
    ],
)
def test_image_folders_that_are_refused(tmp_path, kind, expected):
    folder = break_folders(write_image_folders(tmp_path, 9, 6), kind)
    with pytest.raises(DataError, match=expected):
        load(source="imagefolder", path=folder)


def test_classes_and_files_are_sorted_as_torchvision_sorts_them(tmp_path):
    for name in (
        "train/b/2.JPEG",
        "train/b/10.jpg",
        "train/B/x.png",
        "train/a/y.JPEG",
        "train/b/notes.txt",
        "val/b/1.JPEG",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    train, validation = load(source="imagefolder", path=tmp_path)
    assert train.classes == ["B", "a", "b"]
    names = [train.describe(i).removeprefix(f"{tmp_path}/train/") for i in range(len(train))]
    assert names == ["B/x.png", "a/y.JPEG", "b/10.jpg", "b/2.JPEG"]
    assert validation.num_classes == 3 and validation.describe(0) == f"{tmp_path}/val/b/1.JPEG"


def break_shards(folder, kind):
    path = folder / "train-00001-of-00004"
    if kind == "missing":
        path.unlink()
    elif kind == "none":
        for shard in folder.glob("validation*"):
            shard.unlink()
    elif kind == "two_sets":
        path.with_name("train-00001-of-00008").touch()
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(path.read_bytes()[: {"cut_off": -1, "short": 6}[kind]])


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("missing", "train-00001-of-00004 missing; copy the whole set of 4 shards"),
        ("none", "no file validation-00000-of-"),
        ("two_sets", "train shards of 00004 and of 00008; keep one set"),
        ("empty", "train-00001-of-00004: holds no record"),
        ("cut_off", r"train-00001-of-00004: record 4 should end at byte (\d+), but the file has \d+; it is truncated"),
        ("short", "train-00001-of-00004: record 0 should end"),
    ],
)
def test_shards_that_are_refused(tmp_path, kind, expected):
    write_records(tmp_path, 20, 6)
    break_shards(tmp_path, kind)
    with pytest.raises(DataError, match=expected):
        load(source="tfrecord", path=tmp_path)


def test_the_index_reads_what_tensorflow_reads_and_is_kept_until_a_file_changes(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path, lengths in zip(paths, ([0, 5, 70_000], [1]), strict=True):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for length in lengths:
                writer.write(os.urandom(length))
    stored = tmp_path / "index" / "set.index.npz"
    index = index_records(paths, stored)
    expected = list(tf.data.TFRecordDataset([str(path) for path in paths]).as_numpy_iterator())
    order = np.array([3, 0, 2, 1, 1])
    assert list(RecordReader(index).read(order)) == [expected[i] for i in order]
    assert [index.describe(i).rsplit("/", 1)[1] for i in (2, 3)] == ["a: record 2", "b: record 0"]
    again = index_records(paths, stored)
    np.testing.assert_array_equal(again.offsets, index.offsets)
    with tf.io.TFRecordWriter(str(paths[1])) as writer:
        writer.write(b"new")
        writer.write(b"records")
    assert len(index_records(paths, stored)) == 5
    stored.write_bytes(b"broken")
    assert len(index_records(paths, stored)) == 5


def cifar_files(num_labels, names, num_images=3):
    random = np.random.default_rng(0)
    return {name: random.integers(0, 10, (num_images, num_labels + 3072), np.uint8) for name in names}


CIFAR = {
    "cifar10": (1, [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]),
    "cifar100": (2, ["train.bin", "test.bin"]),
}


@pytest.mark.parametrize("source", CIFAR)
@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_cifar_from_its_published_files(tmp_path, source, kind):
    num_labels, names = CIFAR[source]
    files = cifar_files(num_labels, names)
    path = tmp_path / "binary" if kind == "folder" else tmp_path / "binary.tar.gz"
    if kind == "folder":
        path.mkdir()
        for name, table in files.items():
            (path / name).write_bytes(table.tobytes())
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, table in files.items():
                member = tarfile.TarInfo(f"cifar-binary/{name}")
                member.size = table.nbytes
                archive.addfile(member, io.BytesIO(table.tobytes()))
    train, test = load(source=source, path=path, num_classes=100)
    assert len(train) == 3 * (len(names) - 1) and len(test) == 3
    table = files[names[0]]
    np.testing.assert_array_equal(train.labels[:3], table[:, num_labels - 1])
    # Pixel (row 4, column 9) in green.
    assert train.images[1, 4, 9, 1] == table[1, num_labels + 1024 + 4 * 32 + 9]
    channel = {"cifar10": (0.4822, 0.2435), "cifar100": (0.4865, 0.2564)}[source]
    expected = (test.images[0, 4, 9, 1] / 255.0 - channel[0]) / channel[1]
    np.testing.assert_allclose(test.first_images(1)[0, 4, 9, 1], expected, rtol=1e-5)


def test_cifar_files_that_are_missing_cut_off_or_of_another_size(tmp_path):
    for name, table in cifar_files(1, CIFAR["cifar10"][1]).items():
        (tmp_path / name).write_bytes(table.tobytes())
    with pytest.raises(ConfigError, match="source cifar10 holds images of 32 x 32 pixels; set model.image_size: 32,"):
        load(source="cifar10", path=tmp_path, image_size=16)
    (tmp_path / "data_batch_3.bin").write_bytes(b"x" * 3000)
    with pytest.raises(DataError, match="data_batch_3.bin has 3000 bytes, expected a multiple of 3073"):
        load(source="cifar10", path=tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match="no data_batch_3.bin in it"):
        load(source="cifar10", path=tmp_path)
    with pytest.raises(DataError, match="none.tar.gz: cannot be read"):
        load(source="cifar10", path=tmp_path / "none.tar.gz")
    with tarfile.open(tmp_path / "damaged.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "data_batch_1.bin")
    data = bytearray((tmp_path / "damaged.tar.xz").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "damaged.tar.xz").write_bytes(data)
    with pytest.raises(DataError, match="damaged.tar.xz: cannot be read"):
        load(source="cifar10", path=tmp_path / "damaged.tar.xz")


def write_npz(path, **changes):
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 12), ("test", 5)):
        arrays[f"x_{split}"] = random.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"y_{split}"] = random.integers(0, 10, count, np.uint8)
    np.savez(path, **{name: value for name, value in (arrays | changes).items() if value is not None})
    return path


def test_arrays_of_keras_own_files(tmp_path):
    train, test = load(source="npz", path=write_npz(tmp_path / "mnist.npz"), image_size=28)
    assert train.images.shape == (12, 28, 28, 3) and len(test) == 5
    images = train.first_images(12)
    np.testing.assert_allclose([images.mean(), images.std()], [0, 1], atol=1e-5)
    floats = np.random.default_rng(0).normal(size=(5, 28, 28, 3))
    path = write_npz(tmp_path / "floats.npz", x_train=floats, y_train=np.zeros((5, 1), int), x_test=floats)
    train, _ = load(source="npz", path=path, image_size=28)
    np.testing.assert_array_equal(train.first_images(5), floats.astype(np.float32))


def test_one_hot_labels_are_classes_unless_the_task_says_otherwise(tmp_path):
    classes = {name: np.arange(size, dtype=np.int64) % 10 for name, size in (("y_train", 12), ("y_test", 5))}
    # As `to_categorical` saves them.
    rows = {name: np.eye(10, dtype=np.float32)[labels] for name, labels in classes.items()}
    path = write_npz(tmp_path / "set.npz", **rows)
    for source, labels in zip(load(source="npz", path=path, image_size=28), classes.values(), strict=True):
        assert source.task == "classification"
        np.testing.assert_array_equal(source.labels, labels)
    for source in npz(path, 10, task="multilabel"):
        assert source.task == "multilabel"


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"x_test": None}, "expected arrays x_train"),
        ({"y_train": np.arange(12)}, "y_train has labels 0 to 11, expected 0 to 9"),
        ({"y_train": np.eye(12)}, r"y_train is one-hot for 12 classes, expected 10 \(model.num_classes\)"),
        ({"y_train": np.ones([12, 10])}, "or one-hot rows; for several classes of one image set task: multilabel"),
        ({"y_train": np.zeros(12)}, "y_train is float64"),
        ({"y_train": np.zeros(11, int)}, "as many images as labels, received 12, 11"),
        ({"x_train": np.zeros((12, 28), np.uint8)}, r"x_train is uint8 \[12, 28\]"),
        ({"x_test": np.zeros((5, 20, 20), np.uint8)}, r"x_test of \(20, 20, 3\)"),
        ({"x_train": np.array([{}] * 12)}, "cannot be read as .npz without pickle"),
    ],
)
def test_arrays_that_are_refused(tmp_path, changes, expected):
    with pytest.raises(DataError, match=expected):
        load(source="npz", path=write_npz(tmp_path / "set.npz", **changes), image_size=28)


def test_a_programs_own_arrays_cannot_be_loaded_by_the_command_line():
    with pytest.raises(ConfigError, match="save them as .npz and use the source npz"):
        load(source="arrays")


def test_synthetic_images_are_the_same_every_time():
    config = small_config(data={"source": "synthetic", "num_samples": 100}, model={"image_size": 12})
    (train, validation), (again, _) = sources_of(config), sources_of(config)
    assert len(train) == 100 and len(validation) == 1024
    np.testing.assert_array_equal(train.first_images(70), again.first_images(70))
    assert train.first_images(2).shape == (2, 12, 12, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, np.float32])
def test_pixels_of_255_have_no_class_in_the_masks_of_a_program(dtype):
    masks = np.random.default_rng(0).integers(0, 3, (4, 8, 8)).astype(dtype)
    masks[:, 0] = 255
    images, kept = np.zeros((4, 8, 8, 3), np.float32), masks.copy()
    source = Source(images, masks, 3)
    _, labels = next(iter(evaluation_batches(source, 4, 0, 1)))
    np.testing.assert_array_equal(labels, np.where(kept == 255, -1, kept.astype(np.int64)))
    np.testing.assert_array_equal(masks, kept, "the program's own array")
    # Where it is a class, it stays one.
    assert Source(images, masks, 256).labels is masks
    with pytest.raises(DataError, match=r"expected labels from 0 to 2, received -1(\.0)? to 7"):
        Source(images, np.where(masks == 2, 7, masks), 3)


def test_signals_are_normalized_by_channel():
    signals = np.arange(5 * 7 * 2, dtype=np.float32).reshape(5, 7, 2)
    source = Source(signals, np.zeros(5, np.int64), 2, mean=(3.0, 4.0), std=(2.0, 5.0))
    np.testing.assert_allclose(source.first_images(5), (signals - [3.0, 4.0]) / [2.0, 5.0], rtol=1e-5)
