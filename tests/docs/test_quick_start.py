"""A new user's path, as the page of the quick start types it: an own folder of images, an own model of Keras 3."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from docs.drawings.packages import ROOT
from tests.docs.examples import examples

import pytest

PAGE = "docs/quick_start.md"
# 60 images in three classes, and a classifier with its own scaling and a softmax, as tutorials of Keras have it.
USER = """
import keras, numpy as np
random = np.random.default_rng(0)
rows, columns = np.mgrid[:24, :24] // 3 % 2
patterns = {"bars": rows, "dots": rows * columns, "stripes": columns}
images, labels = [], []
for split, count in (("train", 20), ("val", 8)):
    for label, (name, pattern) in enumerate(patterns.items()):
        folder = __import__("pathlib").Path("photos", split, name)
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = 60 + 120 * np.roll(pattern, random.integers(6, size=2), (0, 1))[..., None] + np.zeros(3)
            pixels = np.clip(pixels + random.normal(scale=25, size=pixels.shape), 0, 255)
            keras.utils.save_img(folder / f"{number}.png", pixels, scale=False)
            images, labels = images + [pixels] * (split == "train"), labels + [label] * (split == "train")
keras.utils.set_random_seed(0)
layers = [keras.Input((24, 24, 3)), keras.layers.Rescaling(1 / 255)]
for width in (16, 24):
    layers += [keras.layers.Conv2D(width, 3, 2), keras.layers.BatchNormalization(momentum=0.9), keras.layers.ReLU()]
layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")]
model = keras.Sequential(layers)
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(np.stack(images), np.array(labels), batch_size=20, epochs=40, verbose=0)
model.save("mine.keras")
"""


@pytest.mark.slow
def test_the_quick_start_from_a_folder_and_a_file_of_keras_3(tmp_path):
    def run(*command, **changes):
        environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment |= {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", **changes}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
        return result.stdout

    run(sys.executable, "-c", USER)
    shutil.copy(tmp_path / "photos" / "val" / "dots" / "0.png", tmp_path / "photo.jpg")
    (typed,) = [e.text for e in examples() if e.page == PAGE and e.reason and e.reason.startswith("a test of its own")]
    assert typed.count("\n") == 2 and "--set" not in typed, "two commands, and no key but the target and the paths"
    printed = run("bash", "-euc", typed)
    report = json.loads((tmp_path / "runs" / "mine" / "slim" / "report.json").read_text())
    assert not report["target_missed"] and not report["problems"] and report["num_masked_alive"] == 0
    assert report["base"]["top1"] > 90 and report["slim"]["top1"] >= report["base"]["top1"] - 5
    assert report["certificate"]["max_relative_difference"] < 1e-4
    for expected in ("validation top-1", "Chosen: prune.lasso_strength", "slim ", "photo.jpg: dots"):
        assert expected in printed, printed
    assert "likely to cost accuracy" not in printed and "will be missed" not in printed
