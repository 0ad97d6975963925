"""The page of a run, made from the files that a run leaves."""

import json
import re
from html.parser import HTMLParser

from resrep_dist.errors import UserError
from resrep_dist.monitoring.channel_history import ChannelHistory
from resrep_dist.reporting.figures import RUN_COLORS, costs_pictures, curves_pictures
from resrep_dist.reporting.page import _with_code, write_pages
from resrep_dist.reporting.run_folder import read_runs
from tests.networks import small_config

import numpy as np
import pytest
import tensorflow as tf


def write_run(workdir, is_finished=True):
    (workdir / "tensorboard").mkdir(parents=True)
    (workdir / "config.yaml").write_text(small_config().to_yaml())
    with tf.summary.create_file_writer(str(workdir / "tensorboard")).as_default():
        for step in range(10, 60, 10):
            tf.summary.scalar("train/loss", 1 / step, step=step)
            if step <= 20:
                tf.summary.scalar("validation/top1", 50.0 + step, step=step)
            tf.summary.histogram("row_norms/a", [1.0, 2.0], step=step)
    # Version 0.2.0 wrote all curves into one folder; the run was resumed with a later one.
    with tf.summary.create_file_writer(str(workdir / "tensorboard" / "validation")).as_default():
        for step in range(30, 60, 10):
            tf.summary.scalar("validation/top1", 50.0 + step, step=step)
    history = ChannelHistory()
    history.update(20, {"conv<1>": (np.array([True, True, False]), np.array([True, False, False]))})
    (workdir / "tensorboard" / "channels.json").write_text(history.to_json())
    if is_finished:
        model = {"top1": 98.5, "macs": 10_000_000, "parameters": 1000, "latency_ms": 1.5, "file_bytes": 2_000_000}
        certificate = {
            "num_images": 256, "max_abs_difference": 7e-6, "max_relative_difference": 3e-7, "argmax_agreement": 1.0,
            "channels": {"conv<1>": {"kept": 2, "original": 3}},
        }  # fmt: skip
        report = {
            "base": model, "trained": model, "slim": model | {"macs": 4_680_000, "top1": 98.25}, "model": "resnet20",
            "target_macs_fraction": 0.47, "target_missed": False, "num_masked_alive": 0, "certificate": certificate,
            "problems": ["top-1 is near guessing"], "training": {"macs_vs_plain": 0.61},
        }  # fmt: skip
        (workdir / "slim").mkdir()
        (workdir / "slim" / "report.json").write_text(json.dumps(report))
    return workdir


class Page(HTMLParser):
    """Collects what a browser would fetch, the texts, and checks that elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.fetched, self.texts, self.num_pictures = [], set(), [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta",):
            self.open.append(tag)
        self.tags.add(tag)
        self.num_pictures += tag == "svg"
        attributes = dict(attributes)
        links = [attributes.get(name) or "" for name in ("src", "href", "xlink:href")]
        self.fetched += [link for link in links if link and not link.startswith(("#", "data:"))]
        assert tag not in ("script", "link", "iframe")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.remove(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_a_page_holds_everything_and_fetches_nothing(tmp_path):
    workdir = write_run(tmp_path / "run")
    path = write_pages(read_runs([workdir]), workdir)
    text = path.read_text()
    page = Page(text)
    assert path == workdir / "report.html" and not page.open and not page.fetched
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.num_pictures == 5, "two of costs, two curves, channels"
    for expected in ("slim", "validation top-1", "98.25 %", "4.68 M (46.8 %)", "7e-06", "conv<1>", "3 → 2"):
        assert expected in page.texts, expected
    assert "Broken: top-1 is near guessing." in page.texts
    assert "target 47.0 % of the multiply-adds, 46.8 % left: met. Training took 61 % of the multiply-adds" in text


def test_the_page_opens_with_the_verdict(tmp_path):
    workdir = write_run(tmp_path / "run")
    page = Page(write_pages(read_runs([workdir]), workdir).read_text())
    verdict = "53 % fewer multiply-adds, accuracy 0.25 points lower (98.50 to 98.25 %), as fast as before here."
    texts = [text for text in page.texts if text]
    assert texts.index(verdict) < texts.index("Accuracy and cost")
    assert f"**{verdict}**" in (workdir / "report.md").read_text().partition("##")[0]


def test_the_configuration_is_what_differs_from_the_defaults(tmp_path):
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second")
    (second / "config.yaml").write_text(small_config(prune={"target_macs_fraction": 0.3}).to_yaml())
    write_pages(read_runs([first]), first)
    one = (first / "report.md").read_text()
    assert "| prune.lasso_strength | 0.02 | auto |" in one and "| train.learning_rate | " in one
    assert "checkpoint.num_kept" not in one and "training.xla" not in one and "data.normalization" not in one
    write_pages(read_runs([first, second]), tmp_path / "page")
    both = (tmp_path / "page" / "report.md").read_text()
    different = both.partition("What differs between the runs:")[2].partition("in all runs alike")[0]
    assert "| prune.target_macs_fraction | 0.5 | 0.3 |" in different and "lasso_strength" not in different


def test_curves_are_told_apart_and_the_axes_show_the_points(tmp_path):
    runs = read_runs([write_run(tmp_path / "first"), write_run(tmp_path / "second")])
    one, both = curves_pictures(runs[:1])["top1"], curves_pictures(runs)["top1"]
    assert RUN_COLORS[0] in one and RUN_COLORS[1] not in one, "one curve"
    assert RUN_COLORS[0] in both and RUN_COLORS[1] in both, "a color for each run"
    assert ">validation<" in one
    # Costs of both runs are the same: the axes are around their points, not around zero.
    ticks = [float(text) for text in re.findall(r">([0-9.]+)</text>", costs_pictures(runs)["macs"])]
    assert min(ticks) > 3 and max(ticks) < 103
    colored = write_pages(runs, tmp_path / "page").read_text()
    assert f'style="background: {RUN_COLORS[1]}"></span>second' in colored


def test_nothing_is_wider_than_the_page(tmp_path):
    text = write_pages(read_runs([write_run(tmp_path / "run")]), tmp_path / "page").read_text()
    assert '<meta name="viewport" content="width=device-width' in text
    assert text.count("<table>") == text.count('<div class="scroll">\n<table>')
    # At a width of 500 px a chart has about 470: its text, of 8 or 9 points, must not become small.
    widths = [float(width) for width in re.findall(r'<svg[^>]* width="([0-9.]+)pt"', text)]
    assert widths and max(widths) < 400


def test_the_markdown_has_the_same_table_and_its_pictures_beside_it(tmp_path):
    workdir = write_run(tmp_path / "run")
    write_pages(read_runs([workdir]), tmp_path / "page")
    text = (tmp_path / "page" / "report.md").read_text()
    assert "| slim | 98.25 % | 4.68 M (46.8 %) | 1,000 | 1.50 ms | 2.00 MB |" in text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 5
    assert all((tmp_path / "page" / name).read_text().startswith("<svg") for name in pictures)


def test_several_runs_share_a_page_and_one_may_be_unfinished(tmp_path):
    runs = read_runs([write_run(tmp_path / "first"), write_run(tmp_path / "second", is_finished=False)])
    page = Page(write_pages(runs, tmp_path / "page").read_text())
    assert page.num_pictures == 6, "two of costs, two curves, channels of both"
    assert "Widths and channels (second)" in page.texts
    assert {"second: Not finished:", "resrep train", "ends with a report."} <= set(page.texts) and "code" in page.tags
    assert "first" in page.texts, "one table of all runs"


def test_runs_are_called_by_as_much_of_their_paths_as_tells_them_apart(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("a/run", "b/run", "b/other")]
    assert [run.name for run in read_runs(folders[1:])] == ["run", "other"]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run", "b/other"]
    assert [run.name for run in read_runs([folders[0], folders[0]])] == ["run", "run"]


def test_curves_are_read_once_per_step_without_histograms(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "run")])
    assert run.curves.keys() == {"train/loss", "validation/top1"}
    assert run.curves["validation/top1"] == [(step, 50.0 + step) for step in range(10, 60, 10)]


def test_the_measured_latencies_of_a_run_are_shown(tmp_path):
    workdir = write_run(tmp_path / "run")
    row = {"format": "tflite", "batch_size": 32, "base_ms": 3.0, "slim_ms": 2.0, "speedup": 1.5}
    (workdir / "benchmark.json").write_text(json.dumps({"latency": {"rows": [row]}}))
    write_pages(read_runs([workdir]), workdir)
    text = (workdir / "report.md").read_text()
    assert "| TFLite, base | 98.50 % | ? | 3 | 1.00 |" in text, "as 0.2.0 wrote it"
    assert "| TFLite, slim | 98.25 % | ? | 2 | 0.67 |" in text


def measured(**changes):
    """A section `latency` of `benchmark.json`."""
    times = {"keras": (4.0, 3.0), "tflite": (2.0, 1.5), "tflite_int8": (1.0, 0.75), "onnx": (1.0, 0.5)}
    rows = [
        {"format": name, "batch_size": size, "base_ms": size * base, "slim_ms": size * slim, "base_spread": 0.03,
         "slim_spread": 0.04, "speedup": base / slim}
        for name, (base, slim) in times.items() for size in (1, 32)
    ]  # fmt: skip
    files = [
        {"format": name, "model": model, "size_bytes": 1_000_000 if model == "base" else 250_000,
         "score": 97.0 if (name, model) == ("tflite_int8", "slim") else None}
        for name in times for model in ("base", "slim")
    ]  # fmt: skip
    layers = {
        "runtime": "onnx", "batch_size": 1, "num_threads": 1, "is_in_place": True, "base_ms": 1.0, "slim_ms": 0.5,
        "slim_spread": 0.03, "base_spread": 0.04, "predicted_ms": 0.55,
        "table": {"base_ms": 1.0, "date": "2026-01-02T03:04:05", "machine": {"processor": "one"}},
        "rows": [{"name": f"conv{i}", "measured_ms": 0.002 * i, "predicted_ms": 0.001 * i} for i in range(1, 23)],
    }  # fmt: skip
    return {"rows": rows, "files": files, "layers": layers, "spread_bound": 0.02, "num_cores": 2, **changes}


def page_of(workdir, latency):
    (workdir / "benchmark.json").write_text(json.dumps({"latency": latency}))
    page = Page(write_pages(read_runs([workdir]), workdir).read_text())
    return page, (workdir / "report.md").read_text().replace("\N{NO-BREAK SPACE}", " ")


def test_the_files_of_each_runtime_are_compared_in_score_size_and_time(tmp_path):
    workdir = write_run(tmp_path / "run")
    page, text = page_of(workdir, measured())
    assert page.num_pictures == 5 + 3 and not page.fetched
    assert "| TFLite, slim, 8 bits | 97.00 % | 0.25 MB | 0.75 ± 4 % | 0.38 | 24 ± 4 % | 0.38 |" in text
    assert "| ONNX, slim | 98.25 % | 0.25 MB | 0.5 ± 4 % | 0.50 | 16 ± 4 % | 0.50 |" in text
    assert "TFLite in eight bits 0.25 of the size and 0.38 ± 0.02 of the time" in text
    assert "not free" not in text and "of an earlier slim model" not in text
    for name in ("report_measured_batch_1", "report_measured_batch_32", "report_layers"):
        assert f"]({name}.svg)" in text and (workdir / f"{name}.svg").exists()


def test_the_layers_are_shown_from_the_slowest_with_all_the_rest(tmp_path):
    workdir = write_run(tmp_path / "run")
    page, text = page_of(workdir, measured())
    picture = (workdir / "report_layers.svg").read_text()
    # 22 layers of 2 to 44 microseconds: 20 are shown, then those of 2 and 4, then what is left of the whole.
    assert ">conv22<" in picture and ">conv3<" in picture and ">conv2<" not in picture and ">2 other layers<" in picture
    assert ">everything else<" in picture and ">by the table<" in picture and ">microseconds<" in picture
    assert "0.55 ms for the whole; 0.5 ms were measured (error +10.0 ± 3.0 %; as a fraction of" in text
    assert "the base's time +10.0 ± 5.0 %)" in text
    assert "The table, of 2026-01-02 on one, predicts 0.55 ms" in text
    table = measured()["layers"]["table"] | {"machine": {"processor": "one", "gpu": "a card"}}
    _, text = page_of(workdir, measured(layers=measured()["layers"] | {"table": table}))
    assert "The table, of 2026-01-02 on a card, predicts 0.55 ms" in text
    alone = measured(layers=measured()["layers"] | {"table": None, "predicted_ms": None, "is_in_place": False})
    alone["layers"]["rows"] = [row | {"predicted_ms": None} for row in alone["layers"]["rows"]]
    _, text = page_of(workdir, alone)
    assert "--costs costs.json` adds what a table of `resrep measure` predicts" in text
    assert "by the table" not in (workdir / "report_layers.svg").read_text()


def test_the_page_says_what_is_missing_or_not_to_be_trusted(tmp_path):
    workdir = write_run(tmp_path / "run")
    write_pages(read_runs([workdir]), workdir)
    assert f"keeps the figures: `resrep benchmark latency {workdir}`." in (workdir / "report.md").read_text()
    latency = measured(slim_sha256="0" * 64)
    latency["files"] = [file | {"score": None} for file in latency["files"]]
    latency["rows"][0]["slim_spread"] = 0.2
    (workdir / "slim" / "model.h5").write_bytes(b"merged again")
    page, text = page_of(workdir, latency)
    assert "the machine was not free" in text and "of an earlier slim model" in text
    assert f"`resrep export {workdir} --format tflite_int8 --format onnx_int8` before the measurement" in text
    assert "| TFLite, slim, 8 bits | ? |" in text and page.num_pictures == 5 + 3
    both = write_pages(read_runs([workdir, write_run(tmp_path / "other")]), tmp_path / "page").read_text()
    assert "Measured latency and size (run)" in both and "Measured latency and size of others" in both


def test_a_folder_that_is_no_run_and_a_broken_report_are_refused(tmp_path):
    with pytest.raises(UserError, match="not a run"):
        read_runs([tmp_path])
    workdir = write_run(tmp_path / "run")
    (workdir / "slim" / "report.json").write_text("{")
    with pytest.raises(UserError, match=r"report\.json: cannot be read"):
        read_runs([workdir])
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="--output .*cannot be written"):
        write_pages(read_runs([write_run(tmp_path / "other")]), blocked)


def test_text_is_escaped_in_both_formats(tmp_path):
    workdir = write_run(tmp_path / "a&b <i> | c")
    page = Page(write_pages(read_runs([workdir]), workdir).read_text())
    assert not page.open and "i" not in page.tags
    assert "a&b <i> | c" in page.texts
    assert "the same images | a&b <i> \\| c |" in (workdir / "report.md").read_text()


def test_commands_are_shown_as_code_and_stay_escaped():
    assert _with_code("run `resrep a&b` <now>") == "run <code>resrep a&amp;b</code> &lt;now&gt;"
