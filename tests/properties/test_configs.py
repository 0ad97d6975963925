"""Whatever a configuration holds, its YAML reads back to an equal one."""

from resrep_dist.config import build_config, load_config

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# YAML's characters; a line may end in more ways than one.
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40)
words = text | st.sampled_from(
    ["null", "true", "1", "1e3", "~", "- a", "a: b", "'", '"', "#", " a ", "a\nb", "0x10", "é"]
)
positive = st.floats(1e-300, 1e300)
fraction = st.floats(1e-9, 1.0, exclude_max=True)
count = st.integers(1, 10**12)


@st.composite
def phases(draw):
    length = draw(st.floats(1e-3, 1e6))
    phase = {
        "num_epochs": length,
        "learning_rate": draw(positive),
        "momentum": draw(st.floats(0, 1, exclude_max=True)),
        "weight_decay": draw(st.floats(0, 1e30)),
        "reference_batch_size": draw(st.none() | count),
        "warmup_epochs": draw(st.floats(0, 0.4)) * length,
    }
    if draw(st.booleans()):
        phase |= {"schedule": "step", "milestone_epochs": [0.5 * length, 0.75 * length]}
    return phase


@st.composite
def documents(draw):
    source = draw(st.sampled_from(["digits", "imagefolder", "tfds", "npz", "synthetic"]))
    data = {"source": source, "global_batch_size": draw(count), "index_folder": draw(st.none() | words)}
    data |= {"path": draw(words)} if source in ("imagefolder", "tfds", "npz") else {}
    data |= {"name": draw(words)} if source == "tfds" else {}
    document = {
        "model": {"name": draw(words), "num_classes": draw(st.integers(2, 10**6)), "image_size": 32},
        "data": data,
        "train": draw(phases()),
        "training": {"loss": draw(words), "metrics": draw(st.lists(words, max_size=3)), "xla": draw(st.booleans())},
        "checkpoint": {"interval_steps": draw(count), "num_kept": draw(count)},
        "seed": draw(st.integers(0, 2**30 - 1)),
    }
    if draw(st.booleans()):
        document["model"]["weights"] = draw(words)
        document["prune"] = {
            "target_macs_fraction": draw(fraction),
            "lasso_strength": draw(positive | st.just("auto")),
            "mask_start_epochs": 0,
            "rule": draw(st.sampled_from(["radial", "paper"])),
            "exclude": draw(st.lists(words, max_size=3)),
            "residual_groups": draw(st.booleans()),
        }
    return document


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents())
def test_the_yaml_of_a_configuration_reads_back_equal(tmp_path, document):
    config = build_config(document)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(path) == config
