"""Analysis of a functional Keras model: groups of prunable channels, reasons for the rest, multiply-adds."""

from resrep_dist.graph.configurations import config_of as config_of
from resrep_dist.graph.rebuilding import CallInputs as CallInputs
from resrep_dist.graph.rebuilding import copy_weights as copy_weights
from resrep_dist.graph.rebuilding import flatten as flatten
from resrep_dist.graph.rebuilding import nodes as nodes
from resrep_dist.graph.rebuilding import rebuild as rebuild
from resrep_dist.graph.rebuilding import require_functional as require_functional
from resrep_dist.graph.rebuilding import with_input_size as with_input_size
from resrep_dist.graph.stored_order import stored_order as stored_order
from resrep_dist.graph.structure import Graph as Graph
from resrep_dist.graph.structure import Group as Group
from resrep_dist.graph.structure import PrunableLayer as PrunableLayer
from resrep_dist.graph.tracing import trace as trace
