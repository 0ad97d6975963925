"""Data as users have it: odd files, folders in folders, numbers that are none."""

import logging

from resrep_dist.data.imagefolder import ImageFolder
from resrep_dist.data.source import Source
from resrep_dist.errors import DataError
from tests.networks import random_source, small_config, sources_of

import numpy as np
import pytest
from PIL import Image

RED = np.zeros([20, 24, 3], np.uint8) + np.array([200, 30, 60], np.uint8)


def written(folder):
    """The same red image in many forms, in one class."""
    (folder / "red").mkdir(parents=True)
    image = Image.fromarray(RED)
    image.save(folder / "red" / "A.PNG")
    Image.fromarray(np.dstack([RED, np.full([20, 24], 90, np.uint8)])).save(folder / "red" / "alpha.png")
    image.quantize().save(folder / "red" / "palette.png")
    image.save(folder / "red" / "one.Gif")
    image.save(folder / "red" / "animated.gif", save_all=True, append_images=[Image.new("RGB", (24, 20))] * 3)
    image.save(folder / "red" / "photo.JPG", quality=100, subsampling=0)
    image.save(folder / "red" / "bits.bmp")
    return folder


def test_every_form_of_an_image_has_its_colors_and_gray_of_16_bits_its_brightness(tmp_path):
    source = ImageFolder(written(tmp_path), 16, 1.0)
    assert len(source) == 7
    Image.fromarray(np.full([20, 24], 200 * 257, np.uint16)).save(tmp_path / "red" / "z16.png")
    source = ImageFolder(tmp_path, 16, 1.0, normalization=lambda pixels: pixels)
    images = source.first_images(8)
    for index in range(7):
        # The colors of a JPEG and of a palette are rounded.
        np.testing.assert_allclose(images[index], np.broadcast_to(RED[0, 0], [16, 16, 3]), atol=3)
    np.testing.assert_allclose(images[7], 200, atol=1)


def test_folders_in_a_class_are_counted_and_a_class_of_folders_alone_says_where_its_images_belong(tmp_path, caplog):
    folder = written(tmp_path)
    (folder / "red" / "more.jpg").mkdir()
    (folder / "red" / ".hidden.png").touch()
    with caplog.at_level(logging.WARNING):
        assert len(ImageFolder(folder, 16, 1.0)) == 7
    assert "1 files are left out (1 folders inside of a class)" in caplog.text
    (folder / "deep" / "2024").mkdir(parents=True)
    (folder / "deep" / "2024" / "1.png").touch()
    with pytest.raises(DataError, match="deep: it holds folders, such as 2024, and no images; the images of a class"):
        ImageFolder(folder, 16, 1.0)


def test_other_images_under_the_same_names_change_the_fingerprint(tmp_path):
    folder = written(tmp_path)
    before = ImageFolder(folder, 16, 1.0).fingerprint()
    path = folder / "red" / "photo.JPG"
    path.write_bytes(path.read_bytes() + b"more")
    after = ImageFolder(folder, 16, 1.0).fingerprint()
    assert {key for key in before if before[key] != after[key]} == {"checksum of the file sizes"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_with_numbers_that_are_none_are_refused_with_the_first_of_them(tmp_path, value):
    whole = random_source(8)
    images = whole.images.copy()
    images[5, 3, 3, 1] = images[7] = value
    with pytest.raises(DataError, match="the set: 2 of 8 images hold NaN or infinity, the first is image 5; mend"):
        Source(images, whole.labels, 10)
    path = tmp_path / "set.npz"
    np.savez(path, x_train=whole.images, y_train=whole.labels, x_test=images, y_test=whole.labels)
    with pytest.raises(DataError, match=r"set\.npz: x_test: 2 of 8 images hold NaN or infinity, the first is image 5"):
        sources_of(small_config(data={"source": "npz", "path": str(path)}))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.arange(1, 9) + 2, "labels 3 to 10, expected 0 to 9 .model.num_classes.; the first class is 0"),
        (np.arange(8.0), r"y_train is float64 \[8\], expected whole numbers \[N\], such as those of y.astype\(int\)"),
        (np.arange(7), "as many images as labels, received 8, 7 in x_train and y_train"),
    ],
)
def test_labels_that_are_refused_come_with_what_to_do(tmp_path, labels, expected):
    images, path = random_source(8).images, tmp_path / "set.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=np.arange(8))
    with pytest.raises(DataError, match=expected):
        sources_of(small_config(data={"source": "npz", "path": str(path)}))
