"""Networks that take any values at any samples, written down by hand (Zhang et al. 2017)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib.models.by_hand import linear, require_distinct, whole

__all__ = ["MemorizingNetwork", "deep_memorizing_network", "memorizing_network"]


class MemorizingNetwork(nn.Module):
    """The two-layer network C(x) = Σ_j w_j relu(a·x - b_j), in float64: what `memorizing_network` returns.

    `direction` a [d], `biases` b [n], `weights` w [n] or [n, outputs]: 2n + d parameters for one output.
    `smallest_eigenvalue` is that of the triangular matrix relu(a·x_i - b_j).
    """

    def __init__(
        self,
        direction: Float[Tensor, " d"],
        biases: Float[Tensor, " n"],
        weights: Float[Tensor, "n *outputs"],
        smallest_eigenvalue: float,
    ):
        super().__init__()
        self.direction = nn.Parameter(direction)
        self.biases = nn.Parameter(biases)
        self.weights = nn.Parameter(weights)
        self.smallest_eigenvalue = smallest_eigenvalue

    def forward(self, inputs: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples *outputs"]:
        z = inputs.flatten(1).to(self.direction.dtype) @ self.direction
        return torch.relu(z[:, None] - self.biases) @ self.weights


def memorizing_network(inputs: Float[Tensor, "samples ..."], labels: Tensor, *, seed: int = 0) -> MemorizingNetwork:
    """Zhang et al. (2017), Theorem 1: a network of 2n + d weights that takes the values `labels` at `inputs`.

    z = Xa, sorted, with b_1 < z_1 < b_2 < z_2 < …, makes A_ij = relu(z_i - b_j) lower triangular with the eigenvalues
    z_i - b_i > 0 (Lemma 1), so that A w = y is solved by forward substitution, in float64. Labels are numbers,
    [samples], or [samples, outputs] with n more weights for each further output. a is the best of 8 Gaussian draws.
    Cost: n²/2 products for each output; 8n² bytes here and in a forward pass over the n samples.
    Inputs that are equal or not finite, or labels that don't match them: ValueError.
    """
    from scipy.linalg import solve_triangular  # here, for scipy takes longer to import than all of genlib

    x, y = _memorizable(inputs, labels)
    generator = torch.Generator().manual_seed(whole(seed))
    draws = torch.randn(8, x.shape[1], dtype=torch.float64, generator=generator)
    # Close neighbours need steep slopes, which cost digits: keep the direction whose closest ones are farthest apart.
    a = max(draws, key=lambda a: _gaps((x @ a).sort().values).min())
    z, order = (x @ a).sort()
    gaps = _gaps(z)
    # A quarter of the way, not half: an error in one slope then shrinks to a third in the next, else it stays as it is.
    b = z - 0.75 * gaps
    matrix = torch.relu(z[:, None] - b)
    w = torch.full_like(y, torch.inf)
    if (matrix.diagonal() > 0).all():
        w = torch.from_numpy(solve_triangular(matrix.numpy(), y[order].numpy(), lower=True, check_finite=False))
    if not w.isfinite().all():
        raise ValueError("inputs holds samples too close to be told apart in float64; drop one of each such pair")
    parts = [part.to(inputs.device) for part in (a.clone(), b, w)]
    return MemorizingNetwork(*parts, smallest_eigenvalue=matrix.diagonal().min().item())


def deep_memorizing_network(
    inputs: Float[Tensor, "samples ..."], labels: Tensor, depth: int, *, seed: int = 0
) -> nn.Sequential:
    """The function of `memorizing_network` as a dense network of `depth` hidden layers, n/depth + 1 + 2·outputs wide.

    Hidden layer l holds the units relu(z - b_j) of the l-th part of the sorted samples. One more unit carries
    t = relu(z - b_1), since relu(z - b_j) = relu(t - (b_j - b_1)), and a pair carries ±(the sum of the earlier parts).
    Most of its weights are zero. Float64: feed it `inputs.double()`. Outputs have the shape of the labels.
    """
    shallow = memorizing_network(inputs, labels, seed=seed)
    a, b, w = shallow.direction.detach(), shallow.biases.detach(), shallow.weights.detach()
    if not 1 <= depth <= len(b):
        raise ValueError(f"depth is {depth}; it must be between 1 and the number of samples, {len(b)}")
    w = w.reshape(len(b), -1)
    outputs = w.shape[1]
    one, none = torch.eye(outputs).to(w), w.new_zeros(outputs, 1)

    layers: list[nn.Module] = [nn.Flatten()]
    for part, (knots, slopes) in enumerate(zip(b.tensor_split(depth), w.tensor_split(depth), strict=True)):
        offsets = torch.cat([b[:1], knots])
        if part == 0:
            layers.append(linear(a.expand(len(offsets), -1), -offsets))
            total = torch.cat([none, slopes.T], 1)
        else:
            from_t = w.new_zeros(len(offsets), total.shape[1])
            from_t[:, 0] = 1
            layers.append(
                linear(torch.cat([from_t, total, -total]), torch.cat([b[0] - offsets, none[:, 0], none[:, 0]]))
            )
            total = torch.cat([none, slopes.T, one, -one], 1)
        layers.append(nn.ReLU())
    layers.append(linear(total, none[:, 0]))
    return nn.Sequential(*layers, *([nn.Flatten(0)] if labels.ndim == 1 else []))


def _memorizable(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    x, y = inputs.detach().cpu().double(), labels.detach().cpu().double()
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"inputs has the shape {tuple(x.shape)}; it must be [samples, …] and not empty")
    if y.ndim not in (1, 2) or len(y) != len(x):
        raise ValueError(
            f"labels has the shape {tuple(y.shape)} for {len(x)} inputs; it must be [samples] or [samples, outputs]"
        )
    for name, values in (("inputs", x), ("labels", y)):
        if not values.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite; drop those samples")
    x = x.flatten(1)
    require_distinct(x)
    return x, y


def _gaps(z: Tensor) -> Tensor:
    """How far each sorted value lies above the one before it; for the first, the mean of the others."""
    gaps = z.diff()
    return torch.cat([gaps.mean(0, keepdim=True) if len(gaps) else z.new_ones(1), gaps])
