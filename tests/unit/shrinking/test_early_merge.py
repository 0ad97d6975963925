"""The mode `merge`: once nothing is left to prune, the slim model trains on without compactors."""

import dataclasses
import shutil

import resrep_dist
from resrep_dist.config import build_config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import CheckpointError
from resrep_dist.graph import trace
from resrep_dist.graph.kept_channels import KeptChannels
from resrep_dist.layers.costs import training_macs
from resrep_dist.layers.insertion import has_compactors
from resrep_dist.pruning.deadness import dead_channels
from resrep_dist.shrinking import shrinker as shrinker_module
from resrep_dist.shrinking.early_merge import calibrate, merged
from resrep_dist.shrinking.surgery import without_channels
from tests.networks import (
    branching_network,
    grouped_network,
    random_source,
    randomise,
    shrinking_config,
    small_network,
    with_dead_channels,
)

import numpy as np
import pytest
from tensorflow import keras

SOURCE = random_source()


@pytest.mark.parametrize("make_model", [small_network, branching_network, grouped_network])
def test_a_merged_model_has_the_same_outputs_and_filters_of_the_former_size(make_model):
    model = make_model()
    randomise(model)
    graph = trace(model, residual_groups=True)
    pruned = with_dead_channels(model, graph)
    dead = dead_channels(pruned, graph)
    small = without_channels(pruned, graph, dead)
    plain = merged(small, graph)
    assert not has_compactors(plain) and has_compactors(small)
    images, others = SOURCE.images[:64], SOURCE.images[64:128]
    scale = float(np.abs(small(others)).max())
    np.testing.assert_allclose(plain(others), small(others), atol=1e-5 * scale)
    calibrate([plain], graph, [images[:48], images[48:]], Cluster())
    np.testing.assert_allclose(plain(others), small(others), atol=1e-5 * scale)
    for layer in (layer for layer in graph.layers if layer.batch_norm):
        batch_norm = plain.get_layer(layer.batch_norm)
        outputs = keras.Model(plain.inputs, plain.get_layer(layer.name).output)(images).numpy().astype(np.float64)
        np.testing.assert_allclose(batch_norm.moving_mean, outputs.mean((0, 1, 2)), atol=1e-5 * np.abs(outputs).max())
        np.testing.assert_allclose(batch_norm.moving_variance, outputs.var((0, 1, 2)), rtol=1e-4)
        before, after = (filter_norms(m.get_layer(layer.name).kernel.numpy()) for m in (small, plain))
        np.testing.assert_allclose(after, np.sqrt(np.mean(before**2)), rtol=1e-5)
    kept = KeptChannels.all_of(graph).without(dead)
    kept = dataclasses.replace(kept, is_merged=True)
    kernels = [layer for layer in plain.layers if hasattr(layer, "kernel")]
    by_hand = sum(int(np.prod(k.output_shape[1:-1])) * int(np.prod(k.kernel.shape)) for k in kernels)
    assert training_macs(pruned, graph, kept) == training_macs(plain, graph, kept) == by_hand


def filter_norms(kernel):
    return np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), axis=0)


def make_trainer(workdir=None, **training):
    model = small_network()
    config = shrinking_config("merge", **training)
    return resrep_dist.Trainer(model, trace(model), config, SOURCE, random_source(64, seed=1), workdir=workdir)


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
    trainer.checkpoints.wait()
    assert merge_step is not None and merge_step < 150
    return trainer, folder, merge_step


def test_a_run_is_merged_when_the_target_is_met_and_trains_on(whole):
    trainer, _, merge_step = whole
    assert not has_compactors(trainer.model) and trainer.state.channels.is_merged
    assert trainer.step == 150 and trainer.is_done()
    assert trainer.state.early_merge["step"] == merge_step
    assert trainer.state.early_merge["certificate"]["max_relative_difference"] < 1e-5
    assert trainer.graph.macs.total(trainer.state.channels.widths) <= 0.6 * trainer.graph.macs.total(
        trainer.graph.widths
    )
    velocities = [v.numpy() for v in trainer.state.velocities.values()]
    assert len(velocities) == len(trainer.model.trainable_variables) and all(v.any() for v in velocities)


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
        assert resumed.state.early_merge == trainer.state.early_merge
        assert resumed.state.keys() == trainer.state.keys()
        for name, variable in resumed.state.items():
            np.testing.assert_array_equal(variable.numpy(), trainer.state[name].numpy(), err_msg=name)


def test_a_trainer_that_has_merged_its_model_cannot_go_back_to_the_whole_one(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.start()
    trainer.train_until(10)
    trainer.checkpoints.wait()
    widths = trainer.state.channels.widths
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "kept")
    while trainer.state.channels.widths == widths:
        trainer.train_until(trainer.step + 10)
    trainer.checkpoints.wait()
    shutil.rmtree(tmp_path / "checkpoints")
    shutil.move(tmp_path / "kept", tmp_path / "checkpoints")
    with pytest.raises(
        CheckpointError, match=f"step {trainer.step}: this Trainer has shrunk its model, .* new Trainer"
    ):
        trainer.start()


def test_what_was_merged_in_training_is_merged_at_the_end(whole):
    trainer, _, _ = whole
    images = random_source(64, seed=1).images
    slim, certificate = resrep_dist.merge(trainer.model, trainer.graph, images)
    assert [entry["original"] for entry in certificate.channels.values()] == trainer.graph.widths
    assert [entry["kept"] for entry in certificate.channels.values()] == trainer.state.channels.widths
    folded = {layer.batch_norm for layer in trainer.graph.layers}
    assert not folded & {layer.name for layer in slim.layers}
    np.testing.assert_allclose(slim(images), trainer.model(images), atol=1e-4)


@pytest.mark.parametrize("training", [{"precision": "mixed_float16"}, {"sync_batch_norm": True}])
def test_other_ways_to_compute_a_step_go_on_in_the_merged_model(training):
    trainer = make_trainer(**training)
    trainer.run()
    assert "certificate" in trainer.state.early_merge and not has_compactors(trainer.model)
    policy = {layer.dtype_policy.name for layer in trainer.model.layers if layer.name.startswith("conv")}
    assert policy == {training.get("precision", "float32")}


def test_statistics_are_measured_on_parts_as_small_as_those_of_a_step(monkeypatch):
    sizes = []

    def observed(models, graph, batches, cluster):
        parts = list(batches)
        sizes.extend(len(part) for part in parts)
        calibrate(models, graph, parts, cluster)

    monkeypatch.setattr(shrinker_module, "calibrate", observed)
    trainer = make_trainer(gradient_accumulation_steps=3)
    trainer.run()
    assert "certificate" in trainer.state.early_merge
    num_batches, batch_size = trainer.config.shrink.num_calibration_batches, trainer.config.data.global_batch_size
    assert sum(sizes) == num_batches * batch_size and max(sizes) == -(-batch_size // 3)


def test_a_merge_that_changes_the_outputs_is_refused_and_the_run_goes_on(monkeypatch, caplog, tmp_path):
    def wrong(model, graph):
        plain = merged(model, graph)
        logits = plain.get_layer("logits")
        logits.set_weights([2 * weight + 1 for weight in logits.get_weights()])
        return plain

    monkeypatch.setattr(shrinker_module, "merged", wrong)
    trainer = make_trainer(tmp_path)
    trainer.run()
    trainer.checkpoints.wait()
    assert has_compactors(trainer.model) and trainer.pruner.is_pruned()
    assert caplog.text.count("shrink.mode merge goes on as exact: the outputs would differ by") == 1
    # Nor is it merged after a restart, where a merge would succeed.
    monkeypatch.undo()
    step = trainer.state.early_merge["step"]
    for path in (tmp_path / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    resumed = make_trainer(tmp_path)
    resumed.start()
    assert resumed.step == step
    assert f"The merge at step {step} was refused (the outputs would differ by" in caplog.text
    assert "`resrep train CONFIG --from DIR --workdir NEW` prunes its base anew." in caplog.text
    resumed.train_until(150)
    assert "refused" in resumed.state.early_merge and has_compactors(resumed.model)
    for name, variable in resumed.state.items():
        np.testing.assert_array_equal(variable.numpy(), trainer.state[name].numpy(), err_msg=name)


def test_a_run_that_misses_its_target_goes_on_as_exact():
    model = small_network()
    document = shrinking_config("merge").to_dict()
    document["prune"] |= {"lasso_strength": 1e-5, "max_extension_epochs": 0.0}
    trainer = resrep_dist.Trainer(model, trace(model), build_config(document), SOURCE, random_source(64, seed=1))
    trainer.start()
    trainer.train_until(60)
    assert has_compactors(trainer.model) and not trainer.pruner.is_pruned()
