"""What networks that are written down by hand are made of, and what their samples and seeds must be."""

from numbers import Integral

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["linear", "require_distinct", "whole"]


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """The dense layer of these weights."""
    layer = nn.utils.skip_init(nn.Linear, *weight.T.shape, bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


def require_distinct(x: Float[Tensor, "n d"]) -> None:
    _, kinds, counts = x.unique(dim=0, return_inverse=True, return_counts=True)
    if (counts > 1).any():
        i, j = (kinds == counts.argmax()).nonzero()[:2, 0].tolist()
        raise ValueError(f"inputs[{i}] and inputs[{j}] are equal; keep one of each set of equal samples")


def whole(seed) -> int:
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed is {seed!r}; it must be a whole number that is not negative")
    return int(seed)
