"""What is measured of a stack's networks one by one, put together."""

from dataclasses import replace

import torch
from torch import Tensor

from genlib.estimates import Eigenpairs, Estimate
from genlib.network.objective import require_finite

__all__ = ["joined", "joined_estimates", "of_model"]


def of_model(pairs: Eigenpairs, i: int) -> Eigenpairs:
    names = ("values", "vectors", "residuals", "converged")
    return replace(pairs, **{name: getattr(pairs, name)[i] for name in names})


def joined(found: list[Tensor], size: int | None) -> Tensor:
    """The values of a stack's networks along a leading axis, or the only one."""
    return found[0] if size is None else torch.stack(found)


def joined_estimates(found: list[Estimate], size: int | None, what: str) -> Estimate:
    value = require_finite(joined([one.value for one in found], size), what)
    by_layer, errors = (
        {name: joined([getattr(one, kind)[name] for one in found], size) for name in getattr(found[0], kind)}
        for kind in ("by_layer", "errors_by_layer")
    )
    return Estimate(value, joined([one.standard_error for one in found], size), found[0].passes, by_layer, errors)
