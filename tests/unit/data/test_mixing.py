"""mixup and CutMix: the same images and labels for any number of ranks, by the definitions of the papers."""

import itertools

import resrep_dist
from resrep_dist.config import DataConfig, RandAugmentConfig, TrainingConfig, build_config
from resrep_dist.data.mixing import MixedLabels, _draw, mix, with_partners
from resrep_dist.data.normalization import Normalization
from resrep_dist.data.order import rank_part, training_batches
from resrep_dist.data.source import Source
from resrep_dist.errors import ConfigError
from resrep_dist.graph import trace
from resrep_dist.training.losses import make_loss
from resrep_dist.training.scores import correct_shares
from tests.networks import random_source, small_config, small_network

import numpy as np
import pytest
import tensorflow as tf

SIZE = 16
BOTH = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0}


def config_of(batch_size=14, **options):
    return DataConfig(source="arrays", global_batch_size=batch_size, **options)


def flat_source(count=50):
    """Image i has the value i everywhere, and the label i."""
    images = np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, SIZE, SIZE, 3))
    return Source(np.ascontiguousarray(images), np.arange(count), count)


def parts(source, num_ranks, config, first_step=0, num_steps=4):
    """Global batches, put together from the parts of the ranks."""
    streams = [
        training_batches(
            source, global_batch_size=config.global_batch_size, augmentation="none", seed=1, rank=rank,
            num_ranks=num_ranks, first_step=first_step, config=config,
        )
        for rank in range(num_ranks)
    ]  # fmt: skip
    steps = zip(*(itertools.islice(stream, num_steps) for stream in streams), strict=True)
    return [tf.nest.map_structure(lambda *values: np.concatenate(values), *step) for step in steps]


@pytest.mark.parametrize(
    ("batch_size", "options"), [(15, BOTH), (14, {"mixup_alpha": 0.2, "rand_augment": RandAugmentConfig()})]
)
def test_batches_are_the_same_for_any_number_of_ranks_and_from_any_step(batch_size, options):
    pixels = np.random.default_rng(0).integers(0, 256, (50, SIZE, SIZE, 3), np.uint8)
    source = Source(pixels, np.arange(50) % 7, 7, (120.0,) * 3, (60.0,) * 3)
    config = config_of(batch_size, **options)
    whole = parts(source, 1, config)
    for num_ranks, first_step in ((2, 0), (3, 2)):
        received = parts(source, num_ranks, config, first_step, 4 - first_step)
        for (images, labels), (same_images, same_labels) in zip(whole[first_step:], received, strict=True):
            np.testing.assert_array_equal(images, same_images)
            for values, same_values in zip(labels, same_labels, strict=True):
                np.testing.assert_array_equal(values, same_values)


@pytest.mark.parametrize("name", ["mixup_alpha", "cutmix_alpha"])
def test_an_image_is_mixed_with_its_neighbor_by_the_share_of_its_label(name):
    ((images, labels),) = parts(flat_source(), 1, config_of(15, **{name: 1.0}), num_steps=1)
    ((plain, of_plain),) = parts(flat_source(), 1, config_of(15), num_steps=1)
    np.testing.assert_array_equal(labels.first, of_plain)
    partners = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 14]
    np.testing.assert_array_equal(labels.second, of_plain[partners])
    expected = labels.weight * labels.first + (1 - labels.weight) * labels.second
    np.testing.assert_allclose(images.mean((1, 2, 3)), expected, rtol=1e-5)
    for image, own, other in zip(images[:14], plain, plain[partners], strict=False):
        is_own, is_other = (np.abs(image - value[0, 0, 0]).max(-1) < 1e-4 for value in (own, other))
        if name == "mixup_alpha":
            assert image.std() < 1e-5
            continue
        assert (is_own | is_other).all()
        rows, columns = np.flatnonzero(is_other.any(1)), np.flatnonzero(is_other.any(0))
        assert is_other.sum() == len(rows) * len(columns), "a window"
        assert not len(rows) or len(rows) == rows[-1] - rows[0] + 1
    assert labels.weight.std() > 0.1 and labels.weight.min() >= 0 and labels.weight.max() <= 1


@pytest.mark.parametrize("options", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}, BOTH])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int64])
def test_arrays_of_any_type_are_mixed_as_those_of_float32(dtype, options):
    source = flat_source()
    other = Source(source.images.astype(dtype), source.labels, source.num_classes)
    ((expected, _),) = parts(source, 1, config_of(**options), num_steps=1)
    ((images, _),) = parts(other, 1, config_of(**options), num_steps=1)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, expected)


def test_images_of_float64_with_a_known_scale_take_rand_augment():
    scale = Normalization((120.0,) * 3, (60.0,) * 3)
    images = np.random.default_rng(0).normal(size=(50, SIZE, SIZE, 3)).astype(np.float32)
    config = config_of(rand_augment=RandAugmentConfig())
    received = [
        parts(Source(images.astype(dtype), np.arange(50), 50, scale=scale), 1, config, num_steps=1)[0][0]
        for dtype in (np.float32, np.float64)
    ]
    np.testing.assert_array_equal(*received)


@pytest.mark.parametrize("alpha", [0.02, 1.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha):
    draw = tf.function(lambda config: _draw(tf.range(3000, dtype=tf.int64), config, 7))
    shares, centers, is_cut = (value.numpy() for value in draw(config_of(mixup_alpha=alpha)))
    assert np.isfinite(shares).all() and not is_cut.any()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * np.sqrt(variance / 3000)
    np.testing.assert_allclose(shares.var(), variance, rtol=0.1)
    np.testing.assert_allclose(centers.mean(0), 0.5, atol=0.03)
    assert abs(np.corrcoef(shares, centers[:, 0])[0, 1]) < 0.1
    _, _, is_cut = draw(config_of(**BOTH))
    assert 0.4 < is_cut.numpy().mean() < 0.6


def test_a_rank_reads_at_most_two_images_of_others():
    for size, num_ranks in itertools.product((13, 16, 30), (1, 2, 3, 5)):
        for rank in range(num_ranks):
            start, end = rank_part(size, rank, num_ranks)
            first, last = with_partners(start, end, size)
            assert first % 2 == 0 and 0 <= start - first <= 1 and 0 <= last - end <= 1 and last <= size
    images, positions = tf.zeros([4, SIZE, SIZE, 3]), tf.range(4, dtype=tf.int64)
    mixed, labels = mix(images, positions, positions, range(1, 3), config_of(**BOTH), 0)
    assert mixed.shape[0] == 2 and labels.first.numpy().tolist() == [1, 2] and labels.second.numpy().tolist() == [0, 3]


@pytest.mark.parametrize("training", [{}, {"label_smoothing": 0.1}, {"class_weights": tuple(np.linspace(0.5, 2, 10))}])
def test_loss_and_top_1_are_those_of_both_labels_by_their_shares(training):
    model, random = small_network(), np.random.default_rng(0)
    outputs = tf.constant(random.normal(size=(12, 10)), tf.float32)
    first, second = (random.integers(0, 10, 12) for _ in range(2))
    weight = random.uniform(size=12).astype(np.float32)
    labels, loss = MixedLabels(*map(tf.constant, (first, second, weight))), make_loss(TrainingConfig(**training), model)
    of_first, of_second = (loss(each, outputs).numpy() for each in labels[:2])
    np.testing.assert_allclose(loss(labels, outputs), weight * of_first + (1 - weight) * of_second, rtol=1e-5)
    if not training:
        soft = weight[:, None] * np.eye(10)[first] + (1 - weight[:, None]) * np.eye(10)[second]
        expected = -(soft * tf.nn.log_softmax(outputs)).numpy().sum(-1)
        np.testing.assert_allclose(loss(labels, outputs), expected, rtol=1e-5)
    best = outputs.numpy().argmax(-1)
    shares = weight * (best == first) + (1 - weight) * (best == second)
    np.testing.assert_allclose(correct_shares(model, labels, outputs), shares, rtol=1e-6)


def make_trainer(workdir, **training):
    document = small_config(checkpoint={"interval_steps": 5}, training=training).to_dict()
    document["data"] |= {**BOTH, "source": "digits", "rand_augment": {"num_operations": 1}, "augmentation": "shift"}
    document["train"]["distillation"] = {}
    model = small_network()
    config = build_config(document)
    sources = resrep_dist.data.loading.load_sources(config.data, config.model)
    return resrep_dist.Trainer(model, trace(model), config, *sources, workdir=workdir, console=None)


def test_a_run_with_all_of_them_and_a_teacher_resumes_bit_for_bit(tmp_path):
    training = {"gradient_accumulation_steps": 2}
    whole = make_trainer(tmp_path, **training)
    whole.start()
    whole.train_until(5)
    whole.checkpoints.wait()
    resumed = make_trainer(tmp_path, **training)
    resumed.start()
    assert resumed.step == 5
    for trainer in (whole, resumed):
        trainer.train_until(11)
    for name, variable in whole.state.items():
        np.testing.assert_array_equal(resumed.state[name].numpy(), variable.numpy(), err_msg=name)


def test_the_compiled_step_takes_mixed_labels():
    trainer = make_trainer(None, xla=True)
    trainer.start()
    trainer.train_until(2)
    metrics = trainer._live.step.read_metrics()
    assert metrics["skipped_steps"] == 0 and 0 <= metrics["top1"] <= 100


@pytest.mark.parametrize("option", [{"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0}, {"rand_augment": {}}])
@pytest.mark.parametrize("task", ["multilabel", "segmentation"])
def test_other_tasks_refuse_them_by_name(task, option):
    (name,) = option
    with pytest.raises(ConfigError, match=rf"data\.{name}: given with task {task}; .* leave it out"):
        small_config(task=task, data={"source": "arrays", **option})
    with pytest.raises(ConfigError, match=r"data.mixup_alpha: received -1"):
        small_config(data={"mixup_alpha": -1.0})
    assert not random_source().pixel_scale()
