"""How much passes at a time: chunks that fit a cache or 64 MB."""

import math
from collections.abc import Sequence

from torch import Tensor

from genlib.network.functional import Network, Params

__all__ = ["BLOCK_BYTES", "samples_at_once", "samples_to_score", "side_by_side"]

_NUMBERS = 2**24  # of all that lies side by side, 64 MB
BLOCK_BYTES = 4 * 2**20  # of gathered inputs; 64 MB leave the cache, which is three times slower for images on a CPU


def samples_at_once(network: Network, inputs: Tensor, labels: Tensor) -> int:
    sample = math.prod(inputs.shape[labels.dim() :]) if network.arguments is None else network.arguments.numbers
    chunk_size = max(1, min(4096, 2**22 // max(1, (network.size or 1) * sample)))
    # A CPU gains nothing from several draws side by side.
    return min(chunk_size, labels.shape[-1]) if inputs.device.type == "cpu" else chunk_size


def side_by_side(params: Params) -> int:
    """How many times these tensors fit into 64 MB, and at least once."""
    return max(1, _NUMBERS // sum(w.numel() for w in params.values()))


def samples_to_score(models: int, input_shape: Sequence[int]) -> int:
    """How many samples an evaluation takes at a time: 64 MB of inputs, at most 4,096 samples."""
    return max(1, min(4096, 2**24 // (models * math.prod(input_shape))))
