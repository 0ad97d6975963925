from pathlib import Path

from resrep_dist.config import load_config, with_absolute_paths, with_real_paths
from tests.networks import small_config


def test_every_path_is_made_absolute_and_nothing_else_changes(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    data = {"source": "tfrecord", "path": "link/shards", "index_folder": "index", "global_batch_size": 8}
    config = small_config(model={"name": "file:link/net.h5", "weights": "/w.h5"}, data=data, base=None)
    absolute = with_absolute_paths(config)
    assert absolute.model.name == f"file:{tmp_path}/link/net.h5" and absolute.model.weights == "/w.h5"
    assert (absolute.data.path, absolute.data.index_folder) == (f"{tmp_path}/link/shards", f"{tmp_path}/index")
    real = with_real_paths(config)
    assert real.model.name == f"file:{tmp_path.resolve()}/real/net.h5" and real == with_real_paths(absolute)
    Path("config.yaml").write_text(absolute.to_yaml())
    assert load_config("config.yaml") == absolute == with_absolute_paths(absolute)
    without = small_config()
    assert with_absolute_paths(without) == with_real_paths(without) == without


def test_a_name_that_no_file_can_have_is_left_for_the_reader_to_refuse():
    config = small_config(model={"weights": "a\0b"}, base=None)
    assert str(with_real_paths(config).model.weights).endswith("/a\0b")
