"""What a run leaves for TensorBoard, read through TensorBoard's own HTTP API."""

import json
import logging
import urllib.parse
import urllib.request

import resrep_dist
from resrep_dist.errors import ConfigError
from resrep_dist.monitoring.channel_history import ChannelHistory
from resrep_dist.monitoring.channel_images import (
    DIED_FIRST,
    DIED_LAST,
    LIVING,
    MASKED,
    channel_colors,
    channel_picture,
    heat_map,
)
from resrep_dist.monitoring.dashboard import subrun_of, write_hparams
from resrep_dist.monitoring.monitor import Monitor
from tests.networks import random_source, shrinking_config, small_config, small_network

import numpy as np
import pytest
import tensorflow as tf

NAMES = ["conv0", "conv1", "conv2"]


def make_trainer(workdir, **changes):
    model = small_network()
    prune = {"target_macs_fraction": 0.8, "channels_per_update": 8, "lasso_strength": 0.05, "mask_stop_fraction": 0.4}
    config = small_config(
        train={"num_epochs": 15},
        prune=prune,
        shrink={"mode": "exact", "min_saved_macs_fraction": 0.01},
        checkpoint={"interval_steps": 50},
        logging={"interval_steps": 10, "evaluation_epochs": 3, **changes},
    )
    sources = random_source(), random_source(64, seed=1)
    return resrep_dist.Trainer(model, resrep_dist.trace(model), config, *sources, workdir=workdir)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that ended at step 70, 20 steps after its checkpoint, and was resumed to its end; and its trainer."""
    workdir = tmp_path_factory.mktemp("curves") / "run"
    # Its profile would go on behind its end.
    stopped = make_trainer(workdir, profile_start_step=60, profile_num_steps=20)
    stopped.start()
    stopped.train_until(70)
    stopped._hooks.on_end(stopped)
    trainer = make_trainer(workdir, profile_start_step=140, profile_num_steps=2)
    trainer.run()
    return workdir, trainer


@pytest.fixture(scope="module")
def ask(run):
    return serve(run[0])


def serve(folder):
    """Requests to TensorBoard's server on a folder; it ends with this process."""
    from tensorboard.program import TensorBoard

    board = TensorBoard()
    board.configure(logdir=str(folder), port=0, host="localhost", load_fast="false", reload_interval=0.0)
    address = board.launch()

    def request(path, **query):
        with urllib.request.urlopen(f"{address}{path}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
            return answer.read()

    return request


def values(ask, tag):
    """(step, value) of a curve."""
    run = f"tensorboard/{subrun_of(tag)}" if subrun_of(tag) else "tensorboard"
    points = json.loads(ask("data/plugin/scalars/scalars", run=run, tag=tag))
    return [(step, value) for _, step, value in points]


def test_curves_have_a_point_for_every_logging_step_once(run, ask):
    num_steps = run[1].step
    for tag in ("train/loss", "train/lasso_term", "train/images_per_second", "time/step_seconds", "width/conv1"):
        points = values(ask, tag)
        assert [step for step, _ in points] == list(range(10, num_steps + 1, 10)), tag
        assert all(np.isfinite(value) and value > 0 for _, value in points), tag
    assert [step for step, _ in values(ask, "validation/top1")] == list(range(30, num_steps + 1, 30))
    assert [step for step, _ in values(ask, "time/checkpoint_seconds")] == [50, 100, 150]


def test_the_lasso_term_is_the_penalty_and_a_step_is_longer_than_its_wait_for_data(run, ask):
    first = values(ask, "train/lasso_term")[0][1]
    # 36 rows that began at norm 1 and have shrunk for ten steps.
    assert 0.8 * 0.05 * 36 < first < 0.05 * 36
    norms = sum(np.sum(norms) for norms in run[1].pruner.norms())
    np.testing.assert_allclose(values(ask, "train/lasso_term")[-1][1], 0.05 * norms, rtol=1e-4)
    steps, waits = values(ask, "time/step_seconds"), values(ask, "time/data_seconds")
    assert all(0 < wait < step for (_, step), (_, wait) in zip(steps, waits, strict=True))
    rest = [seconds for _, seconds in values(ask, "time/compute_seconds")]
    np.testing.assert_allclose(
        rest, [step - wait for (_, step), (_, wait) in zip(steps, waits, strict=True)], rtol=1e-3
    )


def test_the_custom_page_names_only_curves_that_exist_or_need_more_ranks(ask):
    layout = json.loads(ask("data/plugin/custom_scalars/layout"))
    assert layout["category"][0]["title"] == "Is it pruning well?"
    tags = [tag for category in layout["category"] for chart in category["chart"] for tag in chart["multiline"]["tag"]]
    shown = {}
    for tag in tags:
        for run in json.loads(ask("data/runs")):
            answer = json.loads(ask("data/plugin/custom_scalars/scalars", tag=tag, run=run))
            shown.setdefault(tag, set()).update((run, found) for found in answer["tag_to_events"])
    for chart in (chart for category in layout["category"] for chart in category["chart"]):
        runs = [run for tag in chart["multiline"]["tag"] for run, _ in shown[tag]]
        assert len(set(runs)) == len(runs), f"TensorBoard colors by run: {chart['title']}"
    of_tasks, of_targets = (
        chart["multiline"]["tag"]
        for chart in layout["category"][0]["chart"]
        if chart["title"].startswith(("score of another task than classification", "parameters or latency left"))
    )
    assert {tag for tag, found in shown.items() if not found} == {"^time/collective_seconds$", *of_tasks, *of_targets}


def test_pictures_are_made_at_evaluations_and_show_every_group(run, ask):
    def picture(tag):
        (entries,) = [json.loads(ask("data/plugin/images/images", run="tensorboard", tag=tag, sample=0))]
        assert entries[-1]["step"] == run[1].step // 30 * 30
        encoded = ask("data/plugin/images/individualImage?" + entries[-1]["query"])
        return tf.io.decode_png(encoded).numpy()

    channels = picture("channels")
    colors = {tuple(color) for color in channels.reshape(-1, 3)}
    assert LIVING in colors and len(colors) > 2
    # 480 pixels for three rows, 960 for sixteen channels, right of the names.
    names, channels = channels[:, :240], channels[:, 240:]
    assert all((names[row * 160 : (row + 1) * 160] < 100).any() for row in range(3)), "each row has a name"
    num_living = [int((channels[row * 160 + 80, ::60] == LIVING).all(-1).sum()) for row in range(3)]
    assert num_living == run[1].pruner.living_widths()
    assert picture("compactor/conv1").shape == (252, 252, 3)


def test_a_sweeps_table_and_the_texts_hold_the_settings(run, ask):
    experiment = json.loads(ask("data/plugin/hparams/experiment", request=json.dumps({"experimentName": ""})))
    names = {entry["name"]: entry for entry in experiment["hparamInfos"]}
    assert {"train.learning_rate", "prune.target_macs_fraction", "prune.lasso_strength", "seed"} <= set(names)
    assert "shrink.mode" in names, "it differs from the default"
    assert "data.path" not in names, "where the data lies is no hyperparameter"
    assert "training.xla" not in names and "prune.rule" not in names, "they are as by default"
    assert experiment["metricInfos"][0]["name"]["tag"] == "validation/top1"
    texts = json.loads(ask("data/plugin/text/text", run="tensorboard", tag="software"))
    assert "2.21" in texts[0]["text"] and "git commit" in texts[0]["text"]
    assert [text["step"] for text in texts] == [0, 50], "a resume may be on other versions"
    assert (
        "lasso_strength: 0.05" in json.loads(ask("data/plugin/text/text", run="tensorboard", tag="config"))[0]["text"]
    )


def test_a_sweep_has_a_row_for_each_run_also_for_two_of_one_name(tmp_path):
    for name, rate, top1 in (("a", 0.1, 90.0), ("b", 0.2, 95.0)):
        config, monitor = small_config(train={"learning_rate": rate}), Monitor("", tmp_path / name / "run", None, 1)
        monitor.start(0, lambda config=config, name=name: write_hparams(config, str(tmp_path / name / "run")))
        monitor.scalars(0, {"validation/top1": top1})
        monitor.close()
    ask = serve(tmp_path)
    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    columns = [{"hparam": "train.learning_rate"}, {"metric": {"group": "validation", "tag": "validation/top1"}}]
    request = {"experimentName": "", "allowedStatuses": statuses, "colParams": columns, "sliceSize": 9}
    groups = json.loads(ask("data/plugin/hparams/session_groups", request=json.dumps(request)))["sessionGroups"]
    rows = [(row["hparams"]["train.learning_rate"], row["metricValues"][0]["value"]) for row in groups]
    assert sorted(rows) == [(0.1, 90.0), (0.2, 95.0)]


def test_the_profiler_ran_in_its_window_and_ends_with_the_run(run):
    traces = list((run[0] / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb"))
    assert len(traces) == 2 and all(trace.stat().st_size > 10_000 for trace in traces)


def test_the_history_of_the_channels_survives_the_resume_and_ends_as_the_model_is(run):
    workdir, trainer = run
    history = ChannelHistory.load(workdir / "tensorboard")
    for name, (masked, dead) in trainer.pruner.channel_states().items():
        np.testing.assert_array_equal(history.masked_at[name] >= 0, masked)
        np.testing.assert_array_equal(history.died_at[name] >= 0, dead)
    masked_at = np.concatenate(list(history.masked_at.values()))
    assert masked_at[masked_at >= 0].min() == 10, "what happened before the resume is known"


def test_a_run_that_is_merged_in_training_shows_what_is_left_to_its_end(tmp_path):
    """The last rows die between two logging steps, and then there are no masks any more."""
    model, sources = small_network(), (random_source(), random_source(64, seed=1))
    graph = resrep_dist.trace(model)
    trainer = resrep_dist.Trainer(model, graph, shrinking_config("merge"), *sources, workdir=tmp_path, console=None)
    trainer.run()
    channels = trainer.state.channels
    assert channels.is_merged and trainer.state.early_merge["step"] < trainer.step - 20
    history = ChannelHistory.load(tmp_path / "tensorboard")
    for group, kept in zip(graph.groups, channels.kept, strict=True):
        assert np.flatnonzero(history.died_at[group.name] < 0).tolist() == list(kept)
        np.testing.assert_array_equal(history.died_at[group.name] < 0, history.masked_at[group.name] < 0)
    ask = serve(tmp_path)
    fraction = graph.macs.total(channels.widths) / graph.macs.total(graph.widths)
    for name in ("living", "by_mask"):
        step, last = values(ask, f"prune/macs_fraction_{name}")[-1]
        assert step == trainer.step and last == pytest.approx(fraction)


def test_channels_died_when_the_curves_say_so(run, ask):
    history = ChannelHistory.load(run[0] / "tensorboard")
    for name, died_at in history.died_at.items():
        for step, width in values(ask, f"width/{name}"):
            assert width == ((died_at < 0) | (died_at > step)).sum(), (name, step)


def test_a_history_forgets_what_a_resume_makes_undone(tmp_path, caplog):
    no, yes = False, True
    history = ChannelHistory()
    history.update(10, {"a": (np.array([no, yes, yes, no]), np.array([no, no, no, no]))})
    history.update(20, {"a": (np.array([no, yes, yes, no]), np.array([no, yes, no, no]))})
    history.update(30, {"a": (np.array([no, yes, no, yes]), np.array([no, yes, no, yes]))})
    assert history.masked_at["a"].tolist() == [-1, 10, -1, 30]
    assert history.died_at["a"].tolist() == [-1, 20, -1, 30]
    (tmp_path / "channels.json").write_text(history.to_json())
    resumed = ChannelHistory.load(tmp_path, 20)
    assert resumed.died_at["a"].tolist() == [-1, 20, -1, -1]
    logging.getLogger("resrep_dist").propagate = True
    (tmp_path / "channels.json").write_text("[")
    assert ChannelHistory.load(tmp_path).died_at == {} and "cannot be read" in caplog.text


def test_colors_say_state_and_time():
    masked_at, died_at = np.array([5, -1, 5, 5]), np.array([100, -1, -1, 20])
    expected = [LIVING, MASKED, DIED_LAST, DIED_FIRST]
    assert channel_colors(masked_at, died_at, (20, 100)).tolist() == [list(color) for color in expected]
    history = ChannelHistory()
    history.masked_at, history.died_at = {"a": masked_at}, {"a": died_at}
    assert history.first_and_last_death() == (20, 100)
    assert channel_picture(history).shape == (480, 240 + 960, 3)
    pixels = heat_map(np.array([[0.0, -2.0], [0.5, 1.0]]))
    assert pixels.shape == (256, 256, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[0, -1].tolist() == [8, 48, 107]
    assert pixels[-1, 0, 0] > pixels[-1, -1, 0] > pixels[0, -1, 0]


def test_a_heat_map_of_a_group_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="received conv7, expected groups of the model: conv0, conv1, conv2"):
        make_trainer(tmp_path, compactor_heat_maps=["conv7"])
