"""When a trainer's model shrinks, and that a run resumes from either side of it."""

import functools
import logging
import shutil

import resrep_dist
from resrep_dist.config import build_config
from resrep_dist.errors import ConfigError
from resrep_dist.layers.insertion import live_graph
from tests.networks import random_source, shrinking_config, small_network

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras


def make_trainer(workdir=None, mode="exact", **training):
    model = small_network()
    sources = random_source(), random_source(64, seed=1)
    config = shrinking_config(mode, **training)
    return resrep_dist.Trainer(model, resrep_dist.trace(model), config, *sources, workdir=workdir)


def shrinks_of(trainer, last_step):
    """The widths of the model after each step at which they changed."""
    found, widths = {}, trainer.graph.widths
    for step in range(10, last_step + 1, 10):
        trainer.train_until(step)
        kernels = [
            trainer.model.get_layer(layer.compactor).kernel.shape.as_list()[2:] for layer in trainer.graph.layers
        ]
        if kernels != widths:
            found[step], widths = kernels, kernels
    return found


@pytest.mark.parametrize("mode", ["exact", "merge"])
def test_no_smaller_model_is_built_for_a_few_steps_but_the_merged_one(mode):
    document = shrinking_config(mode).to_dict()
    document["shrink"]["min_saved_steps"] = 100
    model = small_network()
    sources = random_source(), random_source(64, seed=1)
    trainer = resrep_dist.Trainer(model, resrep_dist.trace(model), build_config(document), *sources)
    trainer.start()
    trainer.train_until(150)
    assert trainer.pruner is None or sum(trainer.pruner.living_widths()) < sum(trainer.graph.widths)
    assert (sum(trainer.state.channels.widths) < sum(trainer.graph.widths)) == (mode == "merge")


def test_a_run_shrinks_rarely_and_resumes_bit_for_bit_from_before_and_after(tmp_path):
    trainer = make_trainer(tmp_path / "whole")
    trainer.start()
    shrinks = shrinks_of(trainer, 150)
    trainer.checkpoints.wait()
    del shrinks[10]
    assert 1 <= len(shrinks) <= 4, shrinks
    last = max(shrinks)
    assert last < 150
    assert any(before > after for before, after in shrinks[last])
    assert sum(after for _, after in shrinks[last]) < sum(trainer.graph.widths)
    for step in (min(shrinks) - 10, last):
        folder = tmp_path / f"from{step}"
        shutil.copytree(tmp_path / "whole", folder)
        for path in (folder / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        resumed = make_trainer(folder)
        resumed.start()
        assert resumed.step == step
        resumed.train_until(150)
        assert resumed.state.keys() == trainer.state.keys()
        for name, variable in resumed.state.items():
            np.testing.assert_array_equal(variable.numpy(), trainer.state[name].numpy(), err_msg=name)
    slim, certificate = resrep_dist.merge(trainer.model, trainer.graph, random_source(64, seed=1).images)
    assert [entry["original"] for entry in certificate.channels.values()] == trainer.graph.widths
    kept = [entry["kept"] for entry in certificate.channels.values()]
    assert kept == trainer.pruner.living_widths() and trainer.graph.macs.total(kept) < trainer.graph.macs.total(
        trainer.graph.widths
    )
    scalars = read_scalars(tmp_path / "whole" / "tensorboard")
    assert [step for step, _ in scalars["shrink/training_macs_fraction"]] == sorted(shrinks)
    fractions = [value for _, value in scalars["shrink/training_macs_fraction"]]
    assert fractions == sorted(fractions, reverse=True) and all(v > 0 for _, v in scalars["shrink/tracing_seconds"])


def test_exact_chooses_the_masks_and_kills_the_rows_that_off_does(tmp_path):
    trainers = [make_trainer(mode=mode) for mode in ("off", "exact")]
    for trainer in trainers:
        trainer.start()
        trainer.train_until(150)
    off, exact = trainers
    assert live_graph(off.model, off.graph).widths == off.graph.widths
    assert sum(live_graph(exact.model, exact.graph).widths) < sum(exact.graph.widths)
    assert off.pruner.num_chosen == exact.pruner.num_chosen
    assert off.pruner.unmasked_widths() == exact.pruner.unmasked_widths()
    assert off.pruner.living_widths() == exact.pruner.living_widths()


@pytest.mark.slow
@pytest.mark.parametrize("training", [{"precision": "mixed_float16"}, {"sync_batch_norm": True}, {"xla": True}])
def test_other_ways_to_compute_a_step_go_on_in_a_smaller_model(training):
    trainer = make_trainer(**training)
    trainer.run()
    assert sum(live_graph(trainer.model, trainer.graph).widths) < sum(trainer.graph.widths)
    policy = {layer.dtype_policy.name for layer in trainer.model.layers if layer.name.startswith("conv")}
    assert policy == {training.get("precision", "float32")}
    _, certificate = resrep_dist.merge(trainer.model, trainer.graph, random_source(64, seed=1).images)
    kept = [entry["kept"] for entry in certificate.channels.values()]
    assert kept == trainer.pruner.living_widths()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prune": {"target_macs_fraction": 0.5, "rule": "paper"}}, "received 'exact' with prune.rule 'paper'"),
        ({"prune": None, "base": None}, "received 'exact' without the section `prune`"),
        ({"shrink": {"mode": "merged"}}, "shrink.mode: received 'merged', expected 'off', 'exact' or 'merge'"),
        ({"shrink": {"mode": "refold"}}, "^config: shrink.mode: received 'refold', which was removed; use 'merge'"),
    ],
)
def test_what_cannot_shrink_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build_config({**shrinking_config().to_dict(), **change})


def read_scalars(folder):
    """The points of the shrinks; the fraction is in a folder of its own."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = {}
    for path in [folder, *(path for path in folder.iterdir() if path.is_dir())]:
        events = EventAccumulator(str(path))
        events.Reload()
        for tag in (tag for tag in events.Tags()["tensors"] if tag.startswith("shrink/")):
            points[tag] = [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
    return points


def network_with_dropout():
    model = small_network()
    outputs = keras.layers.Dropout(0.5, name="drop")(model.get_layer("pool").output)
    return keras.Model(model.inputs, keras.layers.Dense(10, name="classes")(outputs), name="dropout")


def network_with_lstm(dropout=0.0):
    model = small_network()
    outputs = keras.layers.Reshape([1, 16])(model.get_layer("pool").output)
    outputs = keras.layers.LSTM(4, recurrent_dropout=dropout, name="lstm")(outputs)
    return keras.Model(model.inputs, keras.layers.Dense(10, name="classes")(outputs), name="lstm")


@pytest.mark.parametrize(
    "make_model, mode, training, reasons",
    [
        (network_with_lstm, "exact", {}, []),
        (
            functools.partial(network_with_lstm, 0.5),
            "exact",
            {},
            ["other random numbers in lstm"],
        ),
        (small_network, "exact", {}, []),
        (small_network, "exact", {"gradient_clip_norm": 1.0}, ["training.gradient_clip_norm no longer counts"]),
        (network_with_dropout, "exact", {}, ["a smaller model draws other random numbers in drop"]),
        (network_with_dropout, "exact", {"gradient_clip_norm": 1.0}, ["in drop", "training.gradient_clip_norm"]),
        (network_with_dropout, "off", {"gradient_clip_norm": 1.0}, []),
    ],
)
def test_a_run_in_which_exact_is_not_exact_says_so_at_its_start(
    caplog, monkeypatch, make_model, mode, training, reasons
):
    monkeypatch.setattr(logging.getLogger("resrep_dist"), "propagate", True)
    model, config = make_model(), shrinking_config(mode, **training)
    resrep_dist.Trainer(model, resrep_dist.trace(model), config, random_source(), random_source(64, seed=1))
    said = [record.getMessage() for record in caplog.records if "is not exact in this run" in record.getMessage()]
    assert len(said) == bool(reasons)
    assert all(reason in said[0] for reason in reasons)
