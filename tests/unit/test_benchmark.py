import json

from resrep_dist.benchmark import benchmark_data, write_benchmark
from resrep_dist.cli import main
from resrep_dist.errors import UserError
from tests.images import write_image_folders, write_records
from tests.networks import small_config

import pytest


@pytest.mark.parametrize("source", ["imagefolder", "tfrecord"])
def test_the_pipeline_is_measured_next_to_a_bare_loop(tmp_path, source):
    write = {"imagefolder": write_image_folders, "tfrecord": write_records}[source]
    data = {"source": source, "global_batch_size": 10, "path": str(write(tmp_path))}
    config = small_config(data=data, model={"image_size": 16})
    result = benchmark_data(config, num_images=45, num_rounds=3)
    assert result["images_per_round"] == 40 and len(result["ratio_per_core_of_rounds"]) == 3
    for loop in ("pipeline", "bare_decode_loop"):
        assert all(figure > 0 for figure in result[loop].values())
    assert (
        min(result["ratio_per_core_of_rounds"]) <= result["ratio_per_core"] <= max(result["ratio_per_core_of_rounds"])
    )


def test_the_command_writes_its_section_and_keeps_the_others(tmp_path, capsys):
    write_benchmark(tmp_path, "other", {"seconds": 1})
    config = tmp_path / "config.yaml"
    config.write_text(small_config(data={"source": "synthetic"}).to_yaml())
    arguments = ["--output", str(tmp_path), "--num-images", "64", "--num-rounds", "2"]
    assert main(["benchmark", "data", str(config), *arguments]) == 0
    document = json.loads((tmp_path / "benchmark.json").read_text())
    assert document["other"] == {"seconds": 1} and document["data"]["source"] == "synthetic"
    assert "of the bare loop per core" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "benchmark.json").write_text("broken")
    with pytest.raises(UserError, match="benchmark.json: cannot be read"):
        write_benchmark(tmp_path, "data", {})
