"""Merging: a trained model with compactors becomes a slim plain Keras model with the same outputs."""

from resrep_dist.merging.certificate import Certificate as Certificate
from resrep_dist.merging.certificate import certify as certify
from resrep_dist.merging.certificate import check_certificate as check_certificate
from resrep_dist.merging.certificate import logits as logits
from resrep_dist.merging.folding import fold_arrays as fold_arrays
from resrep_dist.merging.folding import merge_convolution as merge_convolution
from resrep_dist.merging.keras3 import compare_in_keras3 as compare_in_keras3
from resrep_dist.merging.merge import merge as merge
