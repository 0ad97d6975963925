"""The programs in `examples/` run as their users run them, and end as they say."""

import re
import subprocess
import sys

from resrep_dist.models.files import load_model
from tests.ranks.launcher import REPOSITORY, run_ranks

import pytest

EXAMPLES = REPOSITORY / "examples"
_DIFFERENCE = r"largest difference of the outputs: (\S+) of the largest output"


def run(name, *arguments):
    """What a program printed on its standard output."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def find(pattern, text):
    """The groups of the only match, numbers as such."""
    (match,) = re.finditer(pattern, text)
    return [float(group.replace(",", "")) for group in match.groups()]


def assert_is_pruned_and_exact(text, target):
    before, after = find(r"multiply-adds: (\S+) before, (\S+) after", text)
    assert after <= target * before
    assert find(_DIFFERENCE, text)[0] < 1e-5
    base, slim = find(r"top-1: (\S+) % before, (\S+) % after", text)
    assert base > 90 and slim > 90


@pytest.mark.slow
def test_an_own_model_is_pruned_on_a_folder_of_images(tmp_path):
    text = run("own_model_class_folder.py", tmp_path / "images")
    assert_is_pruned_and_exact(text, 0.6)
    assert len(list((tmp_path / "images" / "train").rglob("*.png"))) == 1437
    slim = load_model(tmp_path / "images" / "slim.h5")
    for name, kept, original in re.findall(r"(\S+): (\d+) of (\d+) channels", text):
        assert slim.get_layer(name).filters == int(kept) <= int(original)


@pytest.mark.slow
def test_fit_prunes_and_resumes_where_it_ended(tmp_path):
    first = run("fit_with_callbacks.py", tmp_path)
    widths = re.findall(r"(\d+) of (\d+) channels", first)
    assert any(int(kept) < int(original) for kept, original in widths)
    assert find(r"pruned and merged: (\S+) %", first)[0] > 90 and find(_DIFFERENCE, first)[0] < 1e-5
    assert list(tmp_path.glob("tensorboard/events*"))
    assert run("fit_with_callbacks.py", tmp_path) == first


@pytest.mark.slow
@pytest.mark.ranks
def test_two_ranks_end_with_the_same_weights(tmp_path):
    code, log = run_ranks(2, [sys.executable, str(EXAMPLES / "two_ranks.py"), str(tmp_path)], tmp_path / "log")
    assert code == 0, log[-4000:]
    sums = dict(re.findall(r"rank (\d) of 2: 32 images a step, sum of the weights (\S+)", log))
    assert sums.keys() == {"0", "1"} and sums["0"] == sums["1"]
    assert_is_pruned_and_exact(log, 0.5)
    # The finished run resumes on one rank, and has nothing left to do.
    text = run("two_ranks.py", tmp_path)
    assert f"rank 0 of 1: 64 images a step, sum of the weights {sums['0']}" in text
    assert_is_pruned_and_exact(text, 0.5)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_weights_and_is_exported(tmp_path):
    text = run("resume_and_export.py", tmp_path)
    (stopped,), (end,) = find(r"stopped at step (\d+)", text), find(r"have the same weights at step (\d+)", text)
    assert 100 <= stopped < end
    assert find(r"TFLite: largest difference (\S+) of", text)[0] < 1e-4
    assert find(r"the same class for (\S+) % of 360 images", text)[0] == 100
    assert (tmp_path / "model.tflite").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "score", "lowest", "outputs"),
    [
        pytest.param("unet_segmentation.py", "mean IoU", 85, ["classes"], marks=pytest.mark.slow),
        pytest.param("two_headed_detector.py", "F1", 85, ["boxes", "classes"], marks=pytest.mark.slow),
        pytest.param("signals_conv1d.py", "top-1", 95, ["classes"], marks=pytest.mark.slow),
    ],
)
def test_more_than_classifiers_of_images_are_pruned_to_half_and_exported(tmp_path, name, score, lowest, outputs):
    text = run(name, tmp_path)
    assert re.search(rf"^ +{score} +multiply-adds$", text, re.MULTILINE)
    before, macs = find(r"before +(\S+) % +(\S+)", text)
    after, slim_macs = find(r"after +(\S+) % +(\S+)", text)
    assert before > lowest and after > lowest and slim_macs <= macs / 2
    differences = re.findall(r"^largest difference of (\S+): (\S+) of", text, re.MULTILINE)
    assert [output for output, _ in differences] == outputs
    files = re.findall(r"^(model\S+?)(?: in Keras 3\S+)?: (\S+) of the largest output", text, re.MULTILINE)
    assert [file for file, _ in files] == ["model.h5", "model.tflite", "model.onnx"]
    assert all(float(difference) < 1e-5 for _, difference in differences + files)
    assert {path.name for path in tmp_path.iterdir()} == {file for file, _ in files}


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(EXAMPLES / "digits.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    slim_macs, macs, percent = find(r"multiply-adds: (\S+) of (\S+) \((\S+) %\)", text)
    assert slim_macs <= 0.6 * macs and percent <= 60
    assert find(_DIFFERENCE, text)[0] < 1e-5 and find(r"top-1 of the slim model: (\S+) %", text)[0] > 90
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4


def test_the_table_lists_every_example():
    listed = set(re.findall(r"\]\((\S+\.(?:py|ipynb))\)", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
