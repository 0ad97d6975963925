"""The average of the weights: `weight_average_decay`."""

import dataclasses
import shutil

import resrep_dist
from resrep_dist.checkpoints.average import WeightAverage, averaged_variables, evaluated_variables
from resrep_dist.checkpoints.files import CheckpointFolder, restore
from resrep_dist.checkpoints.state import TrainState
from resrep_dist.config import TrainingConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import trace
from resrep_dist.layers.insertion import compactors_of, has_compactors, insert_compactors
from resrep_dist.merging.merge import merge
from resrep_dist.models.files import load_model
from resrep_dist.pruning.deadness import dead_channels
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.runs.train import train
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.step import TrainStep
from tests.networks import random_source, randomise, shrinking_config, small_config, small_network

import numpy as np
import pytest
import tensorflow as tf

SOURCE, VALIDATION = random_source(), random_source(64, seed=1)
DECAY = 0.9


def make_step(decay=DECAY, **training):
    base = small_network()
    randomise(base)
    graph = trace(base)
    model = insert_compactors(base, graph)
    compactors = compactors_of(model, graph)
    compactors[1].mask.assign([0.0] * 3 + [1.0] * 9)
    step = TrainStep(Cluster(), TrainingConfig(**training), 32)
    average = WeightAverage(model, decay) if decay else None
    state = TrainState(
        model, ResRepOptimizer(0.1, compactors, lasso_strength=1.0), shared=step.variables, average=average
    )
    step.follow(state)
    return step, state


def values_of(variables):
    return {name: variable.numpy() for name, variable in variables.items()}


@pytest.mark.parametrize("training", [{}, {"xla": True}, {"gradient_accumulation_steps": 2}])
def test_it_follows_good_steps_alone_and_masked_rows_without_delay(training):
    step, state = make_step(**training)
    average = state.average
    expected = values_of(averaged_variables(state.model))
    assert {"conv0/kernel", "bn0/gamma", "bn0/moving_variance", "logits/bias"} < expected.keys()
    assert not any("mask" in name for name in expected)
    for number in range(1, 7):
        images, labels = (
            tf.constant(values[32 * number : 32 * number + 32]) for values in (SOURCE.images, SOURCE.labels)
        )
        is_good = number != 3
        step.run(images if is_good else images * np.nan, labels)
        rate = (1 - min(DECAY, (1 + number) / (10 + number))) * is_good
        for name, weight in values_of(averaged_variables(state.model)).items():
            expected[name] = expected[name] + rate * (weight - expected[name])
            if name == "conv1_compactor/kernel":
                expected[name][..., :3] = weight[..., :3]
    step.settle()
    for name, value in values_of(average.variables).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)
    dead = np.linalg.norm(state["conv1_compactor/kernel"].numpy()[0, 0], axis=0) == 0
    dead_in_average = np.linalg.norm(average.variables["conv1_compactor/kernel"].numpy()[0, 0], axis=0) == 0
    assert dead[:3].all() and np.array_equal(dead, dead_in_average)


def test_without_it_the_step_has_no_operation_more():
    graphs = []
    for decay in (None, DECAY):
        step, state = make_step(decay)
        assert any(name.startswith("average/") for name in state) == bool(decay)
        images, labels = tf.constant(SOURCE.images[:32]), tf.constant(SOURCE.labels[:32])
        graph = step._compiled.get_concrete_function(images, labels).graph
        graphs.append([operation.name for operation in graph.get_operations()])
    plain, averaged = graphs
    assert not any("weight_average" in name for name in plain)
    assert any("weight_average" in name for name in averaged)


def make_trainer(workdir=None, **training):
    model = small_network()
    config = shrinking_config("merge", weight_average_decay=DECAY, **training)
    return resrep_dist.Trainer(model, trace(model), config, SOURCE, VALIDATION, workdir=workdir, console=None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 150 steps, with its folder and the step at which it was merged."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder)
    trainer.start()
    merge_step = None
    for step in range(10, 151, 10):
        trainer.train_until(step)
        if merge_step is None and trainer.pruner is None:
            merge_step = step
        if trainer.pruner is not None:
            dead = [dead_channels(m, trainer.graph) for m in (trainer.model, trainer.evaluated_model)]
            for of_weights, of_average in zip(*dead, strict=True):
                np.testing.assert_array_equal(of_weights, of_average)
    trainer.checkpoints.wait()
    assert merge_step is not None and merge_step < 150
    return trainer, folder, merge_step


def test_it_shrinks_and_merges_with_the_weights_and_is_what_is_evaluated(whole):
    trainer, folder, merge_step = whole
    averaged = trainer.evaluated_model
    assert averaged is not trainer.model and not has_compactors(averaged)
    for name, variable in averaged_variables(trainer.model).items():
        average = trainer.state[f"average/{name}"]
        assert average.shape == variable.shape and not np.array_equal(average.numpy(), variable.numpy()), name
    assert trainer.state.early_merge["step"] == merge_step
    assert trainer.state.early_merge["certificate"]["max_relative_difference"] < 1e-5
    assert trainer.validation_top1 == Evaluator(averaged).top1(VALIDATION, 64)
    # After 50 steps at rates that fall to zero, the average is near the weights: it was merged into the same form.
    logits = averaged(VALIDATION.images).numpy()
    np.testing.assert_allclose(logits, trainer.model(VALIDATION.images), atol=0.1 * np.abs(logits).max())
    best = CheckpointFolder(folder / "best").newest_position()
    assert best["top1"] >= trainer.validation_top1
    slim, certificate = merge(averaged, trainer.graph, VALIDATION.images)
    np.testing.assert_allclose(slim(VALIDATION.images), logits, atol=1e-4)
    assert [entry["kept"] for entry in certificate.channels.values()] == trainer.state.channels.widths


def test_it_resumes_bit_for_bit_from_before_and_after_the_merge(whole, tmp_path):
    trainer, folder, merge_step = whole
    for step in (merge_step - 10, merge_step):
        copy = tmp_path / f"from{step}"
        shutil.copytree(folder, copy)
        for path in (copy / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        resumed = make_trainer(copy)
        resumed.start()
        assert resumed.step == step and (resumed.pruner is None) == (step == merge_step)
        resumed.train_until(150)
        assert resumed.state.keys() == trainer.state.keys()
        for name, variable in resumed.state.items():
            np.testing.assert_array_equal(variable.numpy(), trainer.state[name].numpy(), err_msg=name)


def test_frozen_batch_norms_are_merged_in_training_as_well():
    model = small_network(freeze_batch_norm=True)
    randomise(model)
    config = shrinking_config("merge", weight_average_decay=DECAY)
    trainer = resrep_dist.Trainer(model, trace(model), config, SOURCE, VALIDATION, console=None)
    trainer.start()
    trainer.train_until(150)
    assert trainer.state.early_merge["certificate"]["max_relative_difference"] < 1e-5


def test_base_slim_model_and_final_model_are_the_average(tmp_path):
    phase = {"num_epochs": 1, "learning_rate": 0.05, "weight_average_decay": DECAY}
    model = {"name": "python:tests.networks:small_classifier"}
    config = small_config(model=model, base=phase, train=phase | {"num_epochs": 2}, prune={"max_extension_epochs": 0})
    report = train(config, tmp_path / "run", Cluster(), None)
    assert report["certificate"]["max_relative_difference"] < 1e-5
    graph = trace(small_network())
    for folder, received in (
        (tmp_path / "run" / "base", load_model(tmp_path / "run" / "base" / "model.h5")),
        (tmp_path / "run", load_model(tmp_path / "run" / "slim" / "trained.h5")),
    ):
        expected = small_network() if folder.name == "base" else insert_compactors(small_network(), graph)
        step = CheckpointFolder(folder / "checkpoints").newest_step()
        path = CheckpointFolder(folder / "checkpoints").path_of(step)
        restore(path, evaluated_variables(expected, True), is_whole=False)
        images = SOURCE.images[:32]
        np.testing.assert_array_equal(received(images), expected(images))
        restore(path, evaluated_variables(expected, False), is_whole=False)
        assert np.abs(received(images) - expected(images)).max() > 1e-4
    plain = dataclasses.replace(config, prune=None, base=None)
    train(plain, tmp_path / "plain", Cluster(), None)
    final, expected = load_model(tmp_path / "plain" / "final" / "model.h5"), small_network()
    checkpoints = CheckpointFolder(tmp_path / "plain" / "checkpoints")
    path = checkpoints.path_of(checkpoints.newest_step())
    restore(path, evaluated_variables(expected, True), is_whole=False)
    np.testing.assert_array_equal(final(images), expected(images))
