"""The slim model tells how to use it, and is used so."""

import dataclasses
import json

from resrep_dist.cli.main import main
from resrep_dist.config import build_config
from resrep_dist.data.normalization import normalization_of
from resrep_dist.errors import DataError, UserError
from resrep_dist.models.files import save_model
from resrep_dist.reporting.usage import usage_of
from resrep_dist.runs.prediction import predict
from tests.networks import random_source, randomise, small_config, small_network

import numpy as np
import pytest
import tensorflow as tf

# Images that were made from pixels.
PIXELS = dataclasses.replace(random_source(20), scale=normalization_of("caffe"))


@pytest.fixture
def photo(tmp_path):
    """16 x 16 pixels, so that nothing is resized or cropped."""
    pixels = np.random.default_rng(0).integers(0, 256, [16, 16, 3]).astype(np.uint8)
    tf.io.write_file(str(tmp_path / "photo.png"), tf.io.encode_png(pixels))
    return tmp_path / "photo.png", pixels


@pytest.fixture
def finished(tmp_path):
    """A run on image files with the scale of Caffe, as far as `predict` looks at it."""
    model = small_network()
    randomise(model)
    save_model(model, tmp_path / "run" / "slim" / "model.h5")
    document = small_config().to_dict()
    files = {"source": "imagefolder", "path": "photos", "augmentation": "none"}
    document["data"] |= files | {"normalization": "caffe", "crop_fraction": 1.0}
    usage = usage_of(build_config(document), PIXELS)
    (tmp_path / "run" / "slim" / "report.json").write_text(json.dumps({"usage": usage}))
    return tmp_path / "run", model, usage


def test_predict_gives_the_model_the_pixels_of_its_report(finished, photo, capsys):
    (workdir, model, usage), (path, pixels) = finished, photo
    caffe = pixels[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32)
    expected = tf.nn.softmax(model(caffe[np.newaxis]))[0].numpy()
    ((best, second, _),) = predict(workdir, [path])
    assert best == (f"class {expected.argmax()}", pytest.approx(expected.max(), abs=1e-5))
    assert second[1] <= best[1]
    assert predict(workdir / "slim", [path]) == [[best, second, _]]
    assert main(["predict", str(workdir), str(path)]) == 0
    assert f"photo.png: class {expected.argmax()} " in " ".join(capsys.readouterr().out.split())
    assert usage["pixels"]["channel_order"] == "BGR" and usage["pixels"]["image_size"] == [16, 16]
    assert usage["versions"]["resrep-dist"] and usage["date"].startswith("20")


def test_what_cannot_be_predicted_is_refused(finished, photo, tmp_path):
    workdir, path = finished[0], photo[0]
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(DataError, match="text.jpg: cannot be read"):
        predict(workdir, [tmp_path / "text.jpg"])
    # Digits, and an npz of floats from 0 to 1, which is used as it is.
    floats = small_config(data={"source": "npz", "path": "floats.npz", "normalization": "none"})
    scaled = dataclasses.replace(random_source(20), mean=(0.5,) * 3, std=(0.25,) * 3)
    for config, source in ((small_config(), random_source(20)), (floats, random_source(20)), (floats, scaled)):
        usage = usage_of(config, source)
        assert [usage["pixels"][name] for name in ("range", "mean", "std")] == [None] * 3
        (workdir / "slim" / "report.json").write_text(json.dumps({"usage": usage}))
        with pytest.raises(UserError, match="does not say which pixels the model expects"):
            predict(workdir, [path])
    assert usage_of(floats, PIXELS)["pixels"]["range"] == [0, 255]
