"""The target of a run: which cost counts, and how much of it may be left."""

import dataclasses
from collections.abc import Sequence

from resrep_dist.config import PruneConfig
from resrep_dist.distributed.cluster import Cluster
from resrep_dist.errors import ConfigError
from resrep_dist.graph import Graph
from resrep_dist.graph.costs import Cost
from resrep_dist.graph.latency import Latency
from resrep_dist.graph.latency_table import read_table
from resrep_dist.timing.summary import distrust

_LEAST_SCALE = 1e-9


@dataclasses.dataclass(frozen=True)
class Goal:
    """What may be left of a cost."""

    setting: str
    """The setting that it comes from, as in `prune.target_macs_fraction`."""
    cost: Cost
    """The cost as a function of the widths."""
    base: float
    """Cost of the base model."""
    fraction: float
    """What may be left, as a fraction of `base`."""

    @property
    def kind(self) -> str:
        """`macs`, `parameters` or `latency`."""
        return self.setting.rpartition(".")[2].removeprefix("target_").partition("_")[0]

    @property
    def limit(self) -> float:
        """What may be left, in the unit of the cost."""
        return self.fraction * self.base

    def fraction_at(self, widths: Sequence[int]) -> float:
        """Return the cost at some widths, as a fraction of `base`.

        Args:
            widths: Number of channels of each group.
        """
        return self.cost.total(widths) / self.base

    def is_met(self, widths: Sequence[int]) -> bool:
        """Return True if the cost at some widths is at most the limit.

        Args:
            widths: Number of channels of each group.
        """
        return self.fraction_at(widths) <= self.fraction


def goal_of(graph: Graph, config: PruneConfig) -> Goal:
    """Return the target of a configuration for a model.

    Args:
        graph: Trace of the original model.
        config: The target.

    Raises:
        ConfigError: If its table of times cannot be read, or is of another model or runtime, or nothing is to be saved.
    """
    target = config.goal
    ((name, value),) = target.goals.items()
    setting = "prune.target_macs_fraction" if config.target is None else f"prune.target.{name}"
    if not name.startswith("latency"):
        assert graph.parameters is not None or name == "macs_fraction", "a graph that was traced has both"
        cost: Cost = graph.macs if name == "macs_fraction" else graph.parameters  # type: ignore[assignment]
        return Goal(setting, cost, cost.total(graph.widths), value)
    latency = _latency(graph, config)
    fraction = value if name == "latency_fraction" else value / latency.base_ms
    if fraction >= 1:
        raise ConfigError(
            f"{setting}: received {value:g}, expected less than {latency.base_ms:.4g}, the time of the base model by "
            f"{target.costs}"
        )
    return Goal(setting, latency, latency.base_ms, fraction)


def latency_of(graph: Graph, path: str) -> Latency:
    """Return the time of a model by a table, whatever its runtime.

    Args:
        graph: Trace of the original model.
        path: The table.

    Raises:
        ConfigError: As `read_table`, and if the table is of another model.
    """
    return Latency(read_table(path)[0], graph, path)


def ranking_scales(goal: Goal, graph: Graph, config: PruneConfig) -> list[float] | None:
    """Return for each group what its norms are divided by in the ranking; None for `ranking: norm`.

    It is what a channel saves at full width, relative to the largest such number. It does not depend on the masks, so
    that the order of the channels does not change as they are masked.

    Args:
        goal: The target.
        graph: Trace of the original model.
        config: The ranking.
    """
    if config.ranking == "norm":
        return None
    savings = goal.cost.slopes(graph.widths)
    # A group that saves nothing comes last.
    return [max(saving / max(savings), _LEAST_SCALE) for saving in savings]


def with_checksum(config: PruneConfig) -> PruneConfig:
    """Return a configuration with the checksum of its table of times, if its target needs one.

    Args:
        config: The target.

    Raises:
        ConfigError: As `read_table`.
    """
    if config.target is None or config.target.costs is None or config.target.costs_sha256 is not None:
        return config
    _, checksum = read_table(config.target.costs)
    return dataclasses.replace(config, target=dataclasses.replace(config.target, costs_sha256=checksum))


def distrusted_costs(config: PruneConfig) -> list[str]:
    """Return why the target's table of times should not be aimed by, as a sentence; empty if it may be.

    Args:
        config: The target.

    Raises:
        ConfigError: As `read_table`.
    """
    target = config.goal
    if target.costs is None or not any(name.startswith("latency") for name in target.goals):
        return []
    reason = distrust(dataclasses.asdict(read_table(target.costs)[0]))
    return [f"Do not aim by costs {target.costs}: {reason}"] if reason else []


def agree_on_costs(cluster: Cluster, config: PruneConfig | None) -> None:
    """Check that all ranks read the same table of times. A collective, if the target needs one.

    Args:
        cluster: The ranks.
        config: The target; None for no pruning.

    Raises:
        UserError: On every rank, if the table cannot be read on one, or differs.
    """
    if config is None or config.target is None or config.target.costs is None or cluster.size == 1:
        return
    costs = config.target.costs
    # The file that this rank has, whatever checksum the configuration names.
    own = cluster.everywhere(lambda: read_table(costs)[1])
    expected = cluster.from_root(lambda: own)

    def compare() -> None:
        if own != expected:
            raise ConfigError(
                f"costs {costs}: another table on rank {cluster.rank} than on rank 0, with the checksum "
                f"{own[:12]} in place of {expected[:12]}; give all hosts the same file"
            )

    cluster.everywhere(compare)


def _latency(graph: Graph, config: PruneConfig) -> Latency:
    target = config.goal
    assert target.costs is not None, "the configuration was checked"
    table, checksum = read_table(target.costs)
    if target.runtime not in (None, table.runtime):
        raise ConfigError(
            f"costs {target.costs}: it is of runtime {table.runtime}, expected {target.runtime} from "
            "prune.target.runtime; write another with `resrep measure`"
        )
    if target.costs_sha256 not in (None, checksum):
        raise ConfigError(
            f"costs {target.costs}: its checksum is {checksum[:12]}, expected {str(target.costs_sha256)[:12]} from "
            "prune.target.costs_sha256: it is not the table that the run was started with; restore it, or use another "
            "--workdir"
        )
    return Latency(table, graph, target.costs)
