"""How large are a network's layers, and what do their sizes bound? Explained in chapter 2, "Norms and margins".

Norms of layers and their products, exact operator norms of convolutions, path norms, distances from the start.
"""

from genlib.norms.layers import (
    LayerShape,
    conv_norm,
    distances,
    frobenius_norms,
    group_norms,
    layer_names,
    layer_shapes,
    operator_frobenius_norms,
    register_norm,
    require_nonzero,
    spectral_norms,
    stable_ranks,
    unknown_parts,
)
from genlib.norms.lipschitz import log_lipschitz_bound
from genlib.norms.operators import OperatorNorm
from genlib.norms.paths import log_path_norm, path_norm
from genlib.norms.products import (
    log_frobenius_complexity,
    log_frobenius_complexity_of,
    log_product,
    log_spectral_complexity,
    log_spectral_complexity_of,
    spectral_complexity,
)
from genlib.norms.summaries import LayerNorms, layer_norms
from genlib.norms.tails import Tail, tail_exponent, tail_exponents

__all__ = [
    "LayerNorms",
    "LayerShape",
    "OperatorNorm",
    "Tail",
    "conv_norm",
    "distances",
    "frobenius_norms",
    "group_norms",
    "layer_names",
    "layer_norms",
    "layer_shapes",
    "log_frobenius_complexity",
    "log_frobenius_complexity_of",
    "log_lipschitz_bound",
    "log_path_norm",
    "log_product",
    "log_spectral_complexity",
    "log_spectral_complexity_of",
    "operator_frobenius_norms",
    "path_norm",
    "register_norm",
    "require_nonzero",
    "spectral_complexity",
    "spectral_norms",
    "stable_ranks",
    "tail_exponent",
    "tail_exponents",
    "unknown_parts",
]
