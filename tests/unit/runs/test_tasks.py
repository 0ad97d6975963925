"""Other tasks than one class for each image, from the command line to the end."""

import re

from resrep_dist.cli.main import main
from resrep_dist.config import build_config
from resrep_dist.data.loading import load_sources
from resrep_dist.errors import ConfigError, DataError, ModelError
from resrep_dist.models.building import build_model
from resrep_dist.models.files import load_model
from resrep_dist.reporting.table import read_report
from resrep_dist.runs.library import prune
from tests.networks import label_network, pixel_network, small_config

import numpy as np
import pytest
from tensorflow import keras


def arrays(task, num_images, seed):
    """Each channel of an image is bright or not, which is its label; or bright on one side, which is its mask."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 60, [num_images, 16, 16, 3])
    if task == "multilabel":
        labels = random.integers(0, 2, [num_images, 3])
        images += 120 * labels[:, np.newaxis, np.newaxis]
    else:
        edges = random.integers(4, 13, num_images)
        labels = (np.arange(16) >= edges[:, np.newaxis]).astype(np.int64)[:, np.newaxis, :].repeat(16, axis=1)
        images += 120 * labels[..., np.newaxis]
        labels[:, 0] = 255
    return images.astype(np.uint8), labels.astype(np.uint8)


def config_of(folder, task):
    network, num_classes = ("label_network", 3) if task == "multilabel" else ("pixel_network", 2)
    return small_config(
        task=task,
        model={"name": f"python:tests.networks:{network}", "num_classes": num_classes},
        data={"source": "npz", "path": str(folder / "data.npz"), "augmentation": "shift"},
        base={"num_epochs": 6, "learning_rate": 0.1},
        train={"num_epochs": 8},
        prune={"target_macs_fraction": 0.7, "lasso_strength": 0.1, "min_base_top1": "auto", "mask_start_epochs": 0.2},
        training={"metrics": ["MeanSquaredError"]},
    )


@pytest.fixture(scope="module", params=["multilabel", "segmentation"])
def run(request, tmp_path_factory):
    """The task, the folder of a finished run, and its configuration's file."""
    folder, task = tmp_path_factory.mktemp(request.param), request.param
    (x, y), (x_test, y_test) = arrays(task, 320, 0), arrays(task, 64, 1)
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    (folder / "config.yaml").write_text(config_of(folder, task).to_yaml())
    assert main(["train", str(folder / "config.yaml"), "--workdir", str(folder / "run"), "--quiet"]) == 0
    return task, folder


def test_it_is_trained_pruned_and_reported_by_the_scores_of_its_task(run, capsys):
    task, folder = run
    report = read_report(folder / "run")
    key, second = {"multilabel": ("mean_average_precision", "f1"), "segmentation": ("mean_iou", "pixel_accuracy")}[task]
    for name in ("base", "slim"):
        assert report[name][key] > 90 and report[name][second] > 90 and report[name]["guessing"] < 60
        assert 0 <= report[name]["MeanSquaredError"] < 0.2 and "top1" not in report[name]
    assert report["problems"] == [] and not report["target_missed"] and report["usage"]["task"] == task
    certificate = report["certificate"]
    assert certificate["max_relative_difference"] < 1e-4 and certificate["keras3_max_relative_difference"] < 1e-4
    slim = load_model(folder / "run" / "slim" / "model.h5")
    # A sigmoid is part of the model, a softmax is taken off.
    assert (slim.layers[-1].name == "labels_activation") == (task == "multilabel")
    assert main(["report", str(folder / "run")]) == 0
    printed, name = capsys.readouterr().out, {"multilabel": "mAP", "segmentation": "mean IoU"}[task]
    assert name in printed and f"{report['slim'][key]:.2f} %" in printed and "top-1" not in printed
    page = (folder / "run" / "report.html").read_text()
    assert name in page and "top-1" not in page
    assert main(["train", str(folder / "config.yaml"), "--workdir", str(folder / "run"), "--quiet"]) == 0


def test_its_files_are_exported_and_evaluate_to_the_same(run, capsys):
    task, folder = run
    assert main(["export", str(folder / "run"), "--format", "tflite"]) == 0
    capsys.readouterr()
    figures = []
    for name in ("slim", "export/model.tflite"):
        assert main(["evaluate", str(folder / "run" / name), "--config", str(folder / "config.yaml")]) == 0
        figures.append(capsys.readouterr().out.split(" on 64 images")[0])
    assert figures[0] == figures[1] and figures[0].startswith("mAP " if task == "multilabel" else "mean IoU ")
    slim = read_report(folder / "run")["slim"]
    assert f"{slim['f1' if task == 'multilabel' else 'pixel_accuracy']:.2f} %" in figures[0]


def test_predict_gives_each_label_its_probability_and_refuses_maps(run, capsys, tmp_path):
    task, folder = run
    path = tmp_path / "image.png"
    pixels = np.full([16, 16, 3], 30, np.uint8)
    pixels[..., 1] = 150
    keras.utils.save_img(path, pixels, scale=False)
    code = main(["predict", str(folder / "run"), str(path)])
    printed = capsys.readouterr()
    if task == "segmentation":
        assert code == 2 and "finds the class of each pixel" in printed.err
        return
    assert code == 0
    shares = {name: float(share) for name, share in re.findall(r"(class \d) (\S+) %", " ".join(printed.out.split()))}
    assert shares["class 1"] > 60 > 40 > max(shares["class 0"], shares["class 2"])


def test_another_task_in_the_folder_of_a_run_is_refused(run, capsys):
    task, folder = run
    other = "segmentation" if task == "multilabel" else "multilabel"
    arguments = ["train", str(folder / "config.yaml"), "--workdir", str(folder / "run"), "--set", f"task={other}"]
    assert main(arguments) == 2
    assert "task" in capsys.readouterr().err


def test_what_does_not_fit_a_task_is_refused_with_what_to_do(tmp_path):
    (x, y), (_, masks) = arrays("multilabel", 8, 0), arrays("segmentation", 8, 0)
    path = tmp_path / "data.npz"

    def sources(task, labels, num_classes=3):
        np.savez(path, x_train=x, y_train=labels, x_test=x, y_test=labels)
        config = small_config(task=task, data={"source": "npz", "path": str(path)}, model={"num_classes": num_classes})
        return load_sources(config.data, config.model, config.task)

    assert sources("multilabel", y)[0].labels.shape == (8, 3)
    assert sources("multilabel", y[:, 0], 1)[0].labels.shape == (8, 1)
    assert sources("segmentation", masks[..., np.newaxis])[0].labels.min() == -1
    for task, labels, message in (
        ("classification", y, "for several classes of one image set task: multilabel"),
        ("classification", masks, "for masks set task: segmentation"),
        ("multilabel", y[:, :2], r"expected 0 or 1 for each class \[N, 3\]"),
        ("multilabel", y + 0.5, r"expected 0 or 1 for each class \[N, 3\]"),
        ("segmentation", masks + 0.5, r"expected whole numbers \[N, height, width\]"),
        ("segmentation", masks // 255 * 7, "has labels up to 7, expected 0 to 2"),
    ):
        with pytest.raises(DataError, match=message):
            sources(task, labels)
    with pytest.raises(ConfigError, match="data.source digits has one class for each image; expected data.source npz"):
        small_config(task="multilabel", data={"source": "digits"})
    with pytest.raises(ConfigError, match="examples/unet_segmentation.py"):
        small_config(task="segmentation", data={"source": "imagefolder", "path": "x"})
    with pytest.raises(ConfigError, match="single output with a sigmoid set task: multilabel"):
        small_config(model={"num_classes": 1})
    with pytest.raises(ConfigError, match=r"train\.distillation: given with task multilabel; .* leave it out"):
        small_config(task="multilabel", data={"source": "arrays"}, train={"distillation": {"weight": 0.5}})
    with pytest.raises(ConfigError, match="task: received 'detection', expected"):
        build_config({**small_config().to_dict(), "task": "detection"})


def test_models_of_another_task_are_refused_with_what_to_do():
    def built(network, task, num_classes=3):
        model = {"name": f"python:tests.networks:{network}", "num_classes": num_classes}
        data = {"source": "arrays"}
        return build_model(small_config(task=task, model=model, data=data).model, task)

    assert built("label_network", "multilabel", 1).output_shape == (None, 1)
    assert built("pixel_network", "segmentation").output_shape == (None, 16, 16, 3)
    with pytest.raises(ModelError, match="for one class for each pixel set task: segmentation"):
        built("pixel_network", "classification")
    with pytest.raises(ModelError, match="task is segmentation; expected .None, height, width, 3."):
        built("label_network", "segmentation")
    with pytest.raises(ModelError, match="ends in a softmax, whose classes exclude each other"):
        built("pixel_network", "multilabel")


def test_one_call_prunes_a_model_of_labels_as_such():
    (x, y), (x_test, y_test) = ((x / 128 - 1, y) for x, y in (arrays("multilabel", 96, 0), arrays("multilabel", 32, 1)))
    keras.utils.set_random_seed(0)
    model = label_network(16, 3)
    model.compile(keras.optimizers.SGD(0.2, momentum=0.9), "binary_crossentropy")
    model.fit(x, y, batch_size=16, epochs=8, verbose=0)
    excluding = keras.Model(model.inputs, keras.layers.Softmax()(model.outputs[0]))
    with pytest.raises(ModelError, match="ends in a softmax, whose classes exclude each other"):
        prune(excluding, (x, y), (x_test, y_test), console=None)
    settings = {"data": {"global_batch_size": 32}, "prune": {"max_extension_epochs": 0}}
    result = prune(model, (x, y), (x_test, y_test), num_epochs=2, settings=settings, console=None)
    assert result.report["base"]["mean_average_precision"] > 90
    assert {"mean_average_precision", "f1"} <= result.history[-1].keys()


def test_one_call_prunes_a_model_of_masks_with_pixels_of_no_class():
    # What marks them, in the first row, is 255.
    sets = [(x / 128 - 1, y) for x, y in (arrays("segmentation", 96, 0), arrays("segmentation", 32, 1))]
    keras.utils.set_random_seed(0)
    settings = {"prune": {"max_extension_epochs": 0, "min_base_top1": 0}}
    result = prune(pixel_network(16, 2), *sets, num_epochs=1, settings=settings, console=None)
    assert result.report["slim"]["macs"] < result.report["base"]["macs"]
    assert {"mean_iou", "pixel_accuracy"} <= result.history[-1].keys()
