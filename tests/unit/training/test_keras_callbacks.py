"""Keras' own way: compile and fit."""

import contextlib
import json

import resrep_dist
from resrep_dist.checkpoints.files import CheckpointFolder, restore
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import CheckpointWriteError, ModelError, NonFiniteError, UserError
from resrep_dist.reporting.run_folder import read_curves
from resrep_dist.training.keras_callbacks import ChannelMasks, Checkpoints, PruningCurves
from tests.fitting import fit
from tests.networks import small_config, small_network, sources_of

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

CONFIG = small_config(prune={"target_macs_fraction": 0.3, "mask_start_epochs": 0.2}, train={"num_epochs": 4})


@pytest.fixture(scope="module")
def trained():
    """What the trainer makes of 40 steps on the digits."""
    tf.config.experimental.enable_op_determinism()
    model = small_network()
    trainer = resrep_dist.Trainer(model, resrep_dist.trace(model), CONFIG, *sources_of(CONFIG))
    trainer.start()
    trainer.train_until(40)
    return {name: variable.numpy() for name, variable in trainer.state.items()}


def assert_equals(state, expected):
    assert state.keys() == expected.keys()
    for name, variable in state.items():
        # The trainer sums and divides, Keras takes the mean: the last digits differ, the masks do not.
        atol = 0 if name.endswith("mask") else 2e-5
        np.testing.assert_allclose(variable.numpy(), expected[name], rtol=0, atol=atol, err_msg=name)


def test_fit_gives_the_trainers_result_with_curves_and_resumes(tmp_path, trained):
    source = sources_of(CONFIG)[0]
    masks = fit(small_network(), CONFIG, source, 40, Cluster(), tmp_path / "whole")
    history = masks.model.history.history
    assert history["macs_by_mask"] == sorted(history["macs_by_mask"], reverse=True) and len(history["accuracy"]) == 4
    assert history["macs_by_mask"][-1] < 1.0 and max(history["macs_living"]) <= 1.0
    assert any((value == 0).any() for name, value in trained.items() if name.endswith("mask"))
    assert_equals(masks.state, trained)
    fit(small_network(), CONFIG, source, 20, Cluster(), tmp_path / "parts")
    # Other weights: what counts is the checkpoint.
    masks = fit(small_network(seed=5), CONFIG, source, 40, Cluster(), tmp_path / "parts")
    assert_equals(masks.state, trained)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = {}
    # The curves of the validation are a run of their own.
    for folder in ("tensorboard", "tensorboard/validation"):
        events = EventAccumulator(str(tmp_path / "parts" / folder), size_guidance={"tensors": 0})
        events.Reload()
        steps |= {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    for tag in ("train/loss", "train/learning_rate", "prune/macs_fraction_living", "row_norms/conv1"):
        assert steps[tag] == list(range(5, 41, 5)), tag
    assert steps["validation/accuracy"] == [10, 20, 30, 40]


@pytest.mark.parametrize("num_failures", [2, 3])
def test_a_checkpoint_that_cannot_be_written_is_tried_again_and_the_third_failure_ends_the_fit(
    tmp_path, monkeypatch, caplog, num_failures
):
    save, steps = CheckpointFolder.save, []

    def failing(folder, step, *arguments):
        steps.append(step)
        if len(steps) <= num_failures:
            raise CheckpointWriteError(f"step {step}: the disk is full")
        return save(folder, step, *arguments)

    monkeypatch.setattr(CheckpointFolder, "save", failing)
    outcome = pytest.raises(CheckpointWriteError, match="step 30") if num_failures == 3 else contextlib.nullcontext()
    with outcome:
        fit(small_network(), CONFIG, sources_of(CONFIG)[0], 40, Cluster(), tmp_path)
    assert steps == ([10, 20, 30] if num_failures == 3 else [10, 20, 30, 40])
    assert caplog.text.count("the disk is full; trying again at the next interval") == 2


def test_the_lasso_term_of_the_curves_has_the_optimizers_strength():
    model = small_network()
    graph = resrep_dist.trace(model)
    pruned = resrep_dist.insert_compactors(model, graph)
    compactors = [pruned.get_layer(layer.compactor) for layer in graph.layers]
    pruned.compile(resrep_dist.ResRepOptimizer(0.0, compactors, lasso_strength=0.5), "mse")
    masks = ChannelMasks(graph, CONFIG.prune, first_step=1, last_step=10)
    pruned.fit(np.zeros([2, 16, 16, 3]), np.zeros([2, 10]), verbose=0, callbacks=[masks])
    # All rows of identities have norm 1.
    assert masks.pruner.curves()[0]["train/lasso_term"] == pytest.approx(0.5 * sum(graph.widths))


def fit_with_masks(images):
    """Fit batches of 8 images, with the callback; return the model."""
    base = small_network()
    graph = resrep_dist.trace(base)
    model = resrep_dist.insert_compactors(base, graph)
    compactors = [model.get_layer(layer.compactor) for layer in graph.layers]
    model.compile(resrep_dist.ResRepOptimizer(0.1, compactors), "mse")
    masks = ChannelMasks(graph, CONFIG.prune, first_step=90, last_step=99)
    labels = np.zeros([len(images), 10], np.float32)
    model.fit(images, labels, 8, shuffle=False, verbose=0, callbacks=[masks])
    return model


def test_a_batch_with_nan_leaves_the_batch_norms_as_they_were_and_is_reported(caplog):
    images = np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype(np.float32)
    expected = fit_with_masks(np.concatenate([images[:8], images[16:]]))
    images[11, 3, 4, 1] = np.nan
    model = fit_with_masks(images)
    # The step counts, but changes nothing.
    assert model.optimizer.iterations.numpy() == 4
    for variable, other in zip(model.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), other.numpy(), err_msg=variable.name)
    assert caplog.text.count("is skipped by all ranks") == 1
    assert "Step 2 is skipped by all ranks, 1 in a row. Not finite: a gradient of all ranks together." in caplog.text


def test_too_many_batches_with_nan_in_a_row_end_the_fit():
    images = np.zeros([128, 16, 16, 3], np.float32)
    images[32:] = np.nan
    with pytest.raises(NonFiniteError, match="step 14: 10 steps in a row were not finite"):
        fit_with_masks(images)


def test_a_model_that_was_compiled_with_another_optimizer_since_can_be_fitted():
    images = np.random.default_rng(0).normal(size=(16, 16, 16, 3)).astype(np.float32)
    model = fit_with_masks(images)
    before = model.get_layer("bn0").moving_mean.numpy()
    model.compile("adam", "mse")
    model.fit(images, np.zeros([16, 10], np.float32), 8, verbose=0)
    assert not np.array_equal(model.get_layer("bn0").moving_mean.numpy(), before)


def test_the_last_checkpoint_has_what_other_callbacks_have_made_of_the_weights(tmp_path):
    class Doubled(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.set_weights([2 * weight for weight in self.model.get_weights()])

    base = small_network()
    graph = resrep_dist.trace(base)
    model = resrep_dist.insert_compactors(base, graph)
    rate = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model.compile(resrep_dist.ResRepOptimizer(rate, [model.get_layer("conv1_compactor")]), "mse")
    masks = ChannelMasks(graph, CONFIG.prune, first_step=90, last_step=99)
    checkpoints = Checkpoints(tmp_path, masks, interval_steps=4)
    data = np.ones([32, 16, 16, 3], np.float32), np.zeros([32, 10], np.float32)
    model.fit(*data, 8, verbose=0, callbacks=[masks, checkpoints, Doubled()])
    kernel = model.get_layer("conv1").kernel
    restored = tf.Variable(kernel)
    restored.assign(tf.zeros_like(restored))
    restore(tmp_path / "step-00000004", {"conv1/kernel": restored}, is_whole=False)
    np.testing.assert_array_equal(restored.numpy(), kernel.numpy())


def test_a_step_that_is_not_finite_is_left_out():
    base = small_network()
    graph = resrep_dist.trace(base)
    model = resrep_dist.insert_compactors(base, graph)
    model.compile(resrep_dist.ResRepOptimizer(0.1, [model.get_layer("conv1_compactor")]), "mse")
    before = [variable.numpy() for variable in model.trainable_variables]
    model.fit(np.full([4, 16, 16, 3], np.nan, np.float32), np.zeros([4, 10], np.float32), verbose=0)
    assert model.optimizer.iterations.numpy() == 1
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_another_callback_goes_on_with_the_masks_of_an_earlier_fit():
    base = small_network()
    graph = resrep_dist.trace(base)
    model = resrep_dist.insert_compactors(base, graph)
    compactors = [model.get_layer(layer.compactor) for layer in graph.layers]
    model.compile(resrep_dist.ResRepOptimizer(0.01, compactors, lasso_strength=1e-3), "mse")
    prune = small_config(prune={"target_macs_fraction": 0.3, "mask_interval_steps": 2, "channels_per_update": 2}).prune
    images, num_masked = np.random.default_rng(0).normal(size=(8, 16, 16, 3)), []
    for _ in range(2):
        masks = ChannelMasks(graph, prune, first_step=1, last_step=100)
        model.fit(images, np.zeros([8, 10]), batch_size=2, epochs=2, verbose=0, callbacks=[masks])
        num_masked.append(sum(int((compactor.mask.numpy() == 0).sum()) for compactor in compactors))
    # Four updates of two channels in each fit.
    assert num_masked == [8, 16]


def test_weights_that_the_loss_does_not_reach_stay_as_they_are(caplog):
    base = small_network()
    graph = resrep_dist.trace(base)
    pruned = resrep_dist.insert_compactors(base, graph)
    unused = keras.layers.Dense(3, name="unused")(pruned.get_layer("pool").output)
    model = keras.Model(pruned.inputs, [pruned.outputs[0], unused])
    compactors = [model.get_layer(layer.compactor) for layer in graph.layers]
    model.compile(resrep_dist.ResRepOptimizer(0.1, compactors, decay=0.1), {pruned.output_names[0]: "mse"})
    before = {variable.name: variable.numpy() for variable in model.trainable_variables}
    model.fit(np.ones([2, 16, 16, 3]), {pruned.output_names[0]: np.zeros([2, 10])}, verbose=0)
    changed = {v.name for v in model.trainable_variables if (v.numpy() != before[v.name]).any()}
    assert before.keys() - changed == {"unused/kernel:0", "unused/bias:0"}
    assert "2 weights have no gradient of the loss and stay as they are: unused/bias:0, unused/kernel:0" in caplog.text


class Lower(keras.callbacks.Callback):
    """Sets the rate at the end of the first epoch, as ReduceLROnPlateau does, and ends the program in the third."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.model.optimizer.learning_rate = 0.001

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.optimizer.iterations == 5:
            raise KeyboardInterrupt


def fit_at_rate(rate, folder, num_epochs, callbacks=()):
    """Fit two steps per epoch, with a checkpoint at the end of each; returns the model, how to go on, and the rates."""
    base = small_network()
    graph = resrep_dist.trace(base)
    model = resrep_dist.insert_compactors(base, graph)
    compactors = [model.get_layer(layer.compactor) for layer in graph.layers]
    model.compile(resrep_dist.ResRepOptimizer(rate, compactors), "mse")
    masks = ChannelMasks(graph, small_config().prune, first_step=50, last_step=100)
    checkpoints = Checkpoints(folder, masks, interval_steps=2)
    images, rates = np.random.default_rng(0).normal(size=(8, 16, 16, 3)), []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: rates.append(model.optimizer.rate_at(0)))

    def go_on(epochs):
        with contextlib.suppress(KeyboardInterrupt):
            model.fit(
                images, np.zeros([8, 10]), batch_size=4, epochs=epochs, verbose=0,
                initial_epoch=checkpoints.saved_step() // 2, callbacks=[masks, checkpoints, watch, *callbacks],
            )  # fmt: skip
        return rates

    go_on(num_epochs)
    return model, go_on, rates


def test_a_resumed_fit_has_the_rate_that_was_set_and_a_second_fit_its_own(tmp_path, caplog):
    fit_at_rate(0.1, tmp_path, 4, [Lower()])
    position = CheckpointFolder(tmp_path, 1).newest_position()
    assert (position["step"], position["learning_rate"]) == (4, pytest.approx(0.001))
    # The rate was set after step 2, before the checkpoint of that step was written.
    first = json.loads((tmp_path / "step-00000002/position.json").read_text())
    assert first["learning_rate"] == pytest.approx(0.001)
    model, go_on, rates = fit_at_rate(0.1, tmp_path, 4)
    assert rates == pytest.approx([0.001] * 2)
    assert "The learning rate is 0.001, as it was at step 4 of the checkpoint, and not 0.1" in caplog.text
    model.optimizer.learning_rate = 0.02
    assert go_on(5)[2:] == pytest.approx([0.02])


def test_checkpoints_without_a_rate_leave_the_optimizers_and_a_schedule_adds_none(tmp_path):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.01])
    fit_at_rate(schedule, tmp_path, 2)
    assert CheckpointFolder(tmp_path, 1).newest_position().keys() == {"format", "step", "num_chosen"}
    assert fit_at_rate(0.05, tmp_path, 3)[2] == pytest.approx([0.05])


def test_another_optimizer_and_a_wrong_order_are_refused(tmp_path):
    base = small_network()
    graph = resrep_dist.trace(base)
    model = resrep_dist.insert_compactors(base, graph)
    data = np.zeros([4, 16, 16, 3], np.float32), np.zeros([4, 10], np.float32)
    masks = ChannelMasks(graph, CONFIG.prune, first_step=1, last_step=10)
    model.compile("sgd", "mse")
    with pytest.raises(UserError, match="received a SGD, expected a ResRepOptimizer"):
        model.fit(*data, verbose=0, callbacks=[masks])
    model.compile(keras.mixed_precision.LossScaleOptimizer(resrep_dist.ResRepOptimizer(0.1)), "mse")
    with pytest.raises(UserError, match="mixed_float16: `fit` does not support it"):
        model.fit(*data, verbose=0, callbacks=[masks])
    for number in (8, "auto"):
        model.compile(resrep_dist.ResRepOptimizer(0.1), "mse", steps_per_execution=number)
        with pytest.raises(UserError, match=f"steps_per_execution: received {number}, expected 1"):
            model.fit(*data, verbose=0, callbacks=[masks])
    with tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]).scope():
        mirrored = keras.models.clone_model(base)
        mirrored.compile(resrep_dist.ResRepOptimizer(0.1), "mse")
    with pytest.raises(UserError, match="a MirroredStrategy of 2 devices, expected none"):
        mirrored.fit(*data, verbose=0, callbacks=[masks])
    model.compile(resrep_dist.ResRepOptimizer(0.1), "mse")
    with pytest.raises(UserError, match="put ChannelMasks first"):
        model.fit(*data, verbose=0, callbacks=[PruningCurves(tmp_path, masks), masks])


def test_a_metric_with_a_value_for_each_class_has_a_curve_for_each(tmp_path):
    base = small_network()
    graph = resrep_dist.trace(base)
    model = resrep_dist.insert_compactors(base, graph)
    compactors = [model.get_layer(layer.compactor) for layer in graph.layers]
    model.compile(resrep_dist.ResRepOptimizer(0.01, compactors), "mse", metrics=[keras.metrics.F1Score()])
    masks = ChannelMasks(graph, CONFIG.prune, first_step=1, last_step=10)
    curves = PruningCurves(tmp_path, masks, interval_steps=1)
    data = np.zeros([4, 16, 16, 3], np.float32), np.eye(10, dtype=np.float32)[:4]
    model.fit(*data, verbose=0, callbacks=[masks, curves], validation_data=data)
    found = read_curves(tmp_path)
    assert {f"{part}/f1_score/{index}" for part in ("train", "validation") for index in range(10)} < found.keys()


def test_group_lasso_has_the_penalty_as_its_gradient_and_0_at_a_zero_row():
    kernel = np.random.default_rng(0).normal(size=(1, 1, 5, 4))
    kernel[..., 2] = 0
    lasso = resrep_dist.GroupLasso(0.3)
    variable = tf.Variable(kernel)
    with tf.GradientTape() as tape:
        value = lasso(variable)
    norms = np.linalg.norm(kernel[0, 0], axis=0)
    assert float(value) == pytest.approx(0.3 * norms.sum())
    expected = 0.3 * kernel / np.where(norms > 0, norms, 1)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-12)


def test_group_lasso_trains_a_compactor_and_is_refused_with_the_optimizer_that_has_it():
    compactor = resrep_dist.Compactor(kernel_regularizer=resrep_dist.GroupLasso(0.5))
    model = keras.Sequential([keras.Input([4, 4, 3]), compactor])
    again = keras.Sequential.from_config(model.get_config())
    assert again.layers[0].kernel_regularizer.strength == 0.5
    model.compile(keras.optimizers.SGD(0.1), lambda labels, outputs: 0.0 * outputs)
    model.fit(np.zeros([2, 4, 4, 3]), np.zeros([2, 4, 4, 3]), verbose=0)
    np.testing.assert_allclose(compactor.kernel.numpy()[0, 0], 0.95 * np.eye(3), atol=1e-6)
    with pytest.raises(ModelError, match="it has a GroupLasso, and ResRepOptimizer adds the same penalty"):
        resrep_dist.ResRepOptimizer(0.1, [compactor])
