"""Two and four real Horovod ranks."""

import shutil
import sys
from pathlib import Path

from tests.ranks.launcher import run_ranks

import numpy as np
import pytest

pytestmark = pytest.mark.ranks
WORKER = str(Path(__file__).with_name("worker.py"))


# One launch for all scenarios of a number of ranks, since most of its time is TensorFlow's start. The last one ends it.
SCENARIOS = {
    1: "trajectory",
    2: "threads,identical,trajectory,not_finite,evaluation,unequal_fit,root_error,other_data,statistics,shrink,"
    "early_merge,flipped_bits",
    4: "fixed_sums,again,identical,trajectory,not_finite,flipped_bits",
}


def work(num_ranks, scenarios, folder):
    return run_ranks(num_ranks, [sys.executable, WORKER, scenarios, str(folder)], folder / "log")


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """For a number of ranks the folder of a scenario, and the launch's exit code and log."""
    results = {}

    def result(num_ranks, scenario):
        if num_ranks not in results:
            folder = tmp_path_factory.mktemp(f"ranks{num_ranks}")
            results[num_ranks] = (folder, *work(num_ranks, SCENARIOS[num_ranks], folder))
        folder, code, log = results[num_ranks]
        ended = sorted(path.name for path in (folder / scenario).glob("rank*_ended"))
        assert scenario == "flipped_bits" or len(ended) == num_ranks, log[-3000:]
        return folder / scenario, code, log

    return result


def test_a_rank_chooses_its_gpu_and_threads_before_tensorflow_starts(worked):
    worked(2, "threads")


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_all_state_is_identical_after_50_steps_on_different_data(worked, num_ranks):
    folder, _, _ = worked(num_ranks, "identical")
    states = [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(num_ranks)]
    images = [state.pop("first_images") for state in states]
    for rank in range(1, num_ranks):
        assert not np.array_equal(images[0], images[rank])
        assert states[0].keys() == states[rank].keys()
        for name in states[0]:
            np.testing.assert_array_equal(states[0][name], states[rank][name], err_msg=f"{name}, rank {rank}")
    masks = np.concatenate([array for name, array in states[0].items() if name.endswith("mask")])
    assert 0 < (masks == 0).sum() < len(masks)


def test_with_four_ranks_a_sum_and_a_second_run_have_the_same_bits(worked):
    worked(4, "fixed_sums")
    worked(4, "again")


@pytest.mark.slow
def test_with_four_ranks_five_runs_of_a_hundred_steps_have_the_same_bits(tmp_path):
    code, log = work(4, "five_times", tmp_path)
    assert code == 0, log[-3000:]


def test_in_float64_one_two_and_four_ranks_follow_one_trajectory(worked):
    one = np.load(worked(1, "trajectory")[0] / "ranks1.npz")
    assert any((one[name] == 0).any() for name in one if name.endswith("mask"))
    for num_ranks in (2, 4):
        several = np.load(worked(num_ranks, "trajectory")[0] / f"ranks{num_ranks}.npz")
        for name in one:
            np.testing.assert_allclose(several[name], one[name], rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_in_float64_parts_synchronized_batch_norm_and_fit_do_not_depend_on_the_ranks(tmp_path):
    for num_ranks in (1, 2):
        code, log = work(num_ranks, "parts,synchronized" + ",keras_fit" * (num_ranks > 1), tmp_path)
        assert code == 0, log[-3000:]
    for scenario in ("parts", "synchronized"):
        one, two = (np.load(tmp_path / scenario / f"ranks{num_ranks}.npz") for num_ranks in (1, 2))
        assert one.files == two.files and any((one[name] == 0).any() for name in one if name.endswith("mask"))
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-9, err_msg=f"{scenario} {name}")


@pytest.mark.slow
def test_in_float16_the_ranks_skip_together_and_stay_equal(tmp_path):
    code, log = work(2, "float16", tmp_path)
    assert code == 0, log[-3000:]
    first, second = (dict(np.load(tmp_path / "float16" / f"rank{rank}.npz")) for rank in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert np.isfinite(first["loss"]) and any((first[name] == 0).any() for name in first if name.endswith("mask"))


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_one_flipped_bit_is_found_and_named_and_ends_the_job_without_a_checkpoint(worked, num_ranks):
    folder, code, log = worked(num_ranks, "flipped_bits")
    assert code != 0
    # Weights and slots are found before the checkpoint of step 30, the rest in the same step.
    found_at = {"conv1/kernel": "30", "velocity/conv1/kernel": "30"}
    for rank in range(num_ranks):
        messages = (folder / f"rank{rank}.txt").read_text().splitlines()
        assert len(messages) == 6, messages
        for message in messages:
            kind, step, text = message.split(": ", 2)
            assert step == found_at.get(kind, "22")
            assert "different state: " in text and f"{kind} on rank {num_ranks - 1}" in text, message
            assert all(f"on rank {rank}" not in text for rank in range(num_ranks - 1)), message
        assert not (folder / f"rank{rank}_ended").exists()
    lines = [text for text in log.splitlines() if "errors.DisagreementError: " in text]
    assert lines and all(f"conv1/kernel on rank {num_ranks - 1}" in line for line in lines)
    assert not (folder / "run" / "checkpoints").exists()


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_steps_that_are_not_finite_are_skipped_by_all_named_and_end_the_run(worked, num_ranks):
    # The scenarios hold their own assertions, and `worked` looks whether all ranks came to their ends.
    worked(num_ranks, "not_finite")


@pytest.mark.parametrize("scenario", ["evaluation", "unequal_fit", "root_error", "other_data"])
def test_evaluation_a_refused_fit_errors_of_rank_0_and_other_data(worked, scenario):
    worked(2, scenario)


def test_no_rank_waits_for_the_disk_and_failed_checkpoints_end_all_ranks(tmp_path):
    code, log = work(2, "checkpoints", tmp_path)
    assert code == 0, log[-3000:]


@pytest.mark.slow
def test_the_others_wait_for_rank_0_without_a_time_limit(tmp_path):
    code, log = work(2, "slow_root", tmp_path)
    assert code == 0, log[-3000:]


def test_batch_norm_takes_the_average_of_the_ranks_statistics(worked):
    from resrep_dist.checkpoints.variables import model_variables
    from resrep_dist.data.order import training_batches
    from resrep_dist.graph import trace
    from resrep_dist.layers.insertion import insert_compactors
    from tests.networks import random_source, small_network

    import tensorflow as tf

    folder, _, _ = worked(2, "statistics")
    before, after = dict(np.load(folder / "before0.npz")), dict(np.load(folder / "after1.npz"))
    moved = []
    for rank in range(2):
        base = small_network()
        model = insert_compactors(base, trace(base))
        variables = model_variables(model)
        for name, variable in variables.items():
            variable.assign(before[name])
        batches = training_batches(
            random_source(), global_batch_size=32, augmentation="none", seed=1, rank=rank, num_ranks=2, first_step=0
        )
        model(tf.constant(next(iter(batches))[0]), training=True)
        moved.append({n: v.numpy() for n, v in variables.items() if "moving" in n})
    for name in moved[0]:
        assert not np.allclose(moved[0][name], moved[1][name], atol=1e-4)
        np.testing.assert_allclose(after[name], (moved[0][name] + moved[1][name]) / 2, atol=1e-6)


def shrunken_states(folder):
    return {path.stem: dict(np.load(path)) for path in folder.glob("from*_rank[01].npz")}


def test_ranks_shrink_together_and_one_process_restores_the_state(worked):
    import resrep_dist
    from tests.networks import random_source, shrinking_config, small_network

    folder, _, _ = worked(2, "shrink")
    model = small_network(seed=5)
    graph = resrep_dist.trace(model)
    sources = random_source(), random_source(64, seed=1)
    one = resrep_dist.Trainer(model, graph, shrinking_config(), *sources, workdir=folder / "run")
    one.start()
    assert one.step == 150
    assert sum(one.state.channels.widths) < sum(graph.widths)
    assert sum(one.pruner.living_widths()) < sum(graph.widths)
    states = shrunken_states(folder)
    assert set(states) == {"from0_rank0", "from0_rank1"}
    for where, state in states.items():
        assert state.keys() == one.state.keys()
        for name, variable in one.state.items():
            np.testing.assert_array_equal(state[name], variable.numpy(), err_msg=f"{where} {name}")


def test_ranks_merge_weights_and_average_at_the_same_step_and_one_process_restores_both(worked):
    import resrep_dist
    from tests.networks import random_source, shrinking_config, small_network

    folder, _, _ = worked(2, "early_merge")
    ranks = [dict(np.load(folder / f"merged_rank{rank}.npz")) for rank in (0, 1)]
    steps = [int(of_rank.pop("merge_step")) for of_rank in ranks]
    assert steps[0] == steps[1] > 0
    model = small_network(seed=5)
    sources = random_source(), random_source(64, seed=1)
    config = shrinking_config("merge", weight_average_decay=0.9)
    one = resrep_dist.Trainer(model, resrep_dist.trace(model), config, *sources, workdir=folder / "run")
    one.start()
    assert one.pruner is None and one.state.early_merge["step"] == steps[0]
    assert "average/conv1/kernel" in one.state
    for of_rank in ranks:
        assert of_rank.keys() == one.state.keys()
        for name, variable in one.state.items():
            np.testing.assert_array_equal(of_rank[name], variable.numpy(), err_msg=name)


@pytest.mark.slow
def test_two_ranks_resume_bit_for_bit_from_before_a_shrink(worked, tmp_path):
    shutil.copytree(worked(2, "shrink")[0] / "run", tmp_path / "shrink" / "run")
    for path in (tmp_path / "shrink" / "run" / "checkpoints").iterdir():
        if path.name > "step-00000040":
            shutil.rmtree(path)
    code, log = work(2, "shrink", tmp_path)
    assert code == 0, log[-3000:]
    expected = shrunken_states(worked(2, "shrink")[0])
    resumed = shrunken_states(tmp_path / "shrink")
    assert set(resumed) == {"from40_rank0", "from40_rank1"}
    for rank in (0, 1):
        for name, array in expected[f"from0_rank{rank}"].items():
            np.testing.assert_array_equal(resumed[f"from40_rank{rank}"][name], array, err_msg=name)
