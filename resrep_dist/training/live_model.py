"""A model in training, and all that hangs on its variables."""

from collections.abc import Mapping
from typing import Any

from resrep_dist.checkpoints.digest import Digest
from resrep_dist.checkpoints.state import model_variables, state_variables
from resrep_dist.config import Config
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.graph import Graph
from resrep_dist.layers.insertion import compactors_of
from resrep_dist.pruning.optimizer import ResRepOptimizer
from resrep_dist.pruning.pruner import Pruner
from resrep_dist.pruning.targets import last_mask_step
from resrep_dist.training.evaluation import Evaluator
from resrep_dist.training.phase import PhasePlan, phase_of, pruning_of
from resrep_dist.training.step import TrainStep

import numpy as np
import tensorflow as tf
from tensorflow import keras


class LiveModel:
    """A model with its optimizer, step, evaluator, pruner (with a graph), state and the state's digest.

    Args:
        model: ready for training, see `model_for_training`; with a graph its compactors are in it.
        pruner: that of the run, which follows this model; by default a new one.
    """

    def __init__(
        self,
        model: keras.Model,
        graph: Graph | None,
        config: Config,
        plan: PhasePlan,
        cluster: Cluster,
        pruner: Pruner | None = None,
    ) -> None:
        self.model = model
        self.pruner = pruner or (_make_pruner(model, graph, config, plan, cluster) if graph else None)
        self.optimizer = _make_optimizer(model, graph, config, plan)
        self.step = TrainStep(model, self.optimizer, cluster, config.training, config.data.global_batch_size)
        self.evaluator = Evaluator(model, config.training.metrics)
        self.state = state_variables(model, self.optimizer) | self.step.variables
        self.digest = Digest(self.state)

    def take_over(self, other: "LiveModel", velocities: Mapping[str, np.ndarray]) -> None:
        """Go on where another live model stands: its counters, and velocities by the names of the weights."""
        of_model = model_variables(self.model)
        for name, variable in self.state.items():
            weight = name.removeprefix("velocity/")
            if weight in velocities and weight != name:
                variable.assign(velocities[weight])
            elif weight not in of_model:
                variable.assign(other.state[name])
        self.step.go_on_from(other.step)


def _make_pruner(model: keras.Model, graph: Graph, config: Config, plan: PhasePlan, cluster: Cluster) -> Pruner:
    prune = pruning_of(config)
    first_step = plan.to_steps(prune.mask_start_epochs)
    rates = plan.schedule(tf.range(plan.num_steps)).numpy()
    last_step = last_mask_step(prune, first_step, rates)
    return Pruner(model, graph, prune, cluster, first_step=first_step, last_step=last_step)


def _make_optimizer(model: keras.Model, graph: Graph | None, config: Config, plan: PhasePlan) -> ResRepOptimizer:
    phase = phase_of(config, graph)
    options: dict[str, Any] = {}
    if graph:
        prune = pruning_of(config)
        options = {
            "compactors": compactors_of(model, graph),
            "lasso_strength": prune.lasso_strength,
            "compactor_momentum": prune.compactor_momentum,
            "rule": prune.rule,
        }
    return ResRepOptimizer(plan.schedule, momentum=phase.momentum, decay=phase.weight_decay, **options)
