"""Multiply-adds and parameters as functions of the widths of the prunable groups.

Convention for multiply-adds: convolutions and dense layers count, with one multiply-add per weight and output position.
Bias, batch norm, activations, pooling and compactors, which are folded by the merge, do not count.

Convention for parameters: all weights of the merged model count. So a batch norm that the merge folds counts as the
bias that it becomes, one number per channel.
"""

from resrep_dist.graph.costs import Polynomial


class MultiplyAdds(Polynomial):
    """The multiply-adds of one forward pass of one image."""

    noun = "multiply-adds"


class Parameters(Polynomial):
    """The parameters of the merged model."""

    noun = "parameters"
