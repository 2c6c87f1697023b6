"""Paths in input space."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from genlib.network.objective import seeded_generator

__all__ = ["ellipse", "random_ellipses", "translation_loop"]


def ellipse(a: Tensor, b: Tensor, c: Tensor, *, points: int, dim: int = 0) -> Float[Tensor, "..."]:
    """The ellipse that passes through a, b and c at the angles π/3, π and 5π/3, a closed path: z(2πi/points).

    z(θ) = Σ_i (1 + 2 cos(θ − θ_i))/3 x_i: a circle's affine image, in the plane of the three. It meets them exactly if
    6 divides `points`. The points' axis is `dim`: with [paths, …] for each of the three, `dim` = 1 gives
    [paths, points, …]. Fewer than two points, shapes that differ, whole numbers: ValueError. Novak et al. 2018.
    """
    if not (a.is_floating_point() and b.is_floating_point() and c.is_floating_point()):
        raise ValueError(
            f"a, b and c are of {a.dtype}, {b.dtype} and {c.dtype}; paths are of numbers that vary, make them float"
        )
    if not a.shape == b.shape == c.shape:
        raise ValueError(f"a, b and c have the shapes {[tuple(x.shape) for x in (a, b, c)]}; give three of one shape")
    _require_points(points, dim, a)
    at = torch.tensor([1, 3, 5], dtype=torch.float64, device=a.device) * math.pi / 3
    angles = torch.arange(points, dtype=torch.float64, device=a.device) * (2 * math.pi / points)
    weights = (1 + 2 * torch.cos(angles.unsqueeze(1) - at)) / 3
    return torch.tensordot(weights.to(a), torch.stack([a, b, c]), 1).movedim(0, dim)


def random_ellipses(
    inputs: Float[Tensor, "samples ..."], count: int, *, points: int, generator: torch.Generator | None = None
) -> Float[Tensor, "count points ..."]:
    """Ellipses through random points, far from the data but of their scale.

    Each passes through three points of independent Gaussian numbers, with the mean and the standard deviation of all
    numbers in `inputs`. Without a generator they are always the same.
    """
    if count < 1 or inputs.numel() == 0:
        raise ValueError(f"count is {count} for {len(inputs)} inputs; give at least one of each")
    generator = seeded_generator(generator, inputs.device)
    deviation, mean = torch.std_mean(inputs, correction=0)
    drawn = torch.randn(3, count, *inputs.shape[1:], generator=generator, dtype=inputs.dtype, device=inputs.device)
    return ellipse(*(drawn * deviation + mean), points=points, dim=1)


def translation_loop(images: Float[Tensor, "..."], *, points: int, dim: int = 0) -> Float[Tensor, "..."]:
    """An image or a series moved once around its last axis, the end joined to the start: a closed path of equal shifts.

    Shift i is i·width/points; between whole pixels the two neighbouring shifts are interpolated. The points' axis is
    `dim`: 0 for one image, 1 for a batch of them. Fewer than two points: ValueError. Novak et al. 2018.
    """
    _require_points(points, dim, images)
    width = images.shape[-1]
    shifts = torch.arange(points, device=images.device, dtype=torch.float64) * (width / points)
    whole = shifts.floor()
    columns = (torch.arange(width, device=images.device) - whole.long().unsqueeze(1)) % width
    share = (shifts - whole).unsqueeze(1).to(images)
    moved = torch.lerp(images[..., columns], images[..., (columns - 1) % width], share)
    return moved.movedim(-2, dim)


def _require_points(points: int, dim: int, sample: Tensor) -> None:
    if points < 2:
        raise ValueError(f"points is {points}; a path has at least 2")
    if not 0 <= dim < max(1, sample.dim()):
        raise ValueError(
            f"dim is {dim} for the shape {tuple(sample.shape)}; it says how many axes go before the points"
        )
