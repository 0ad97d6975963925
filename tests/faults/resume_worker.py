"""One rank of a run that goes on with another number of ranks: `resume_worker.py FOLDER LAST_STEP`."""

import sys
from pathlib import Path

from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import trace
from resrep_dist.training.trainer import Trainer
from tests.networks import small_config, small_network, sources_of

import numpy as np
import tensorflow as tf

if __name__ == "__main__":
    folder, last_step = Path(sys.argv[1]), int(sys.argv[2])
    tf.config.experimental.enable_op_determinism()
    cluster = Cluster()
    # Other weights on every rank and in every start: all have to come from the checkpoint.
    model = small_network(seed=10 * last_step + cluster.rank)
    config = small_config(checkpoint={"interval_steps": 60}, logging={"record_samples": True})
    trainer = Trainer(model, trace(model), config, *sources_of(config), cluster=cluster, workdir=folder / "run")
    trainer.start()
    np.savez(
        folder / f"started-at-{trainer.step}-rank-{cluster.rank}-of-{cluster.size}.npz",
        num_chosen=trainer.pruner.num_chosen,
        **{name: variable.numpy() for name, variable in trainer.state.items()},
    )
    trainer.train_until(last_step)
    rates = [trainer.state.optimizer.rate_at(step) for step in range(trainer.num_steps)]
    np.save(folder / f"rates-{cluster.size}-ranks.npy", rates)
