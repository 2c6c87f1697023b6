"""What the measures of one network share: each quantity is computed when it is first asked for, and once."""

import functools
import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from genlib import curvature, margins, norms, pac_bayes, sharpness
from genlib._noise import deviations
from genlib._objective import Objective, require_finite, seeded_generator, start_of
from genlib.estimates import Estimate, Maximum
from genlib.network import Network, Params
from genlib.train import Run

__all__ = ["Shared", "total"]

_INCREASE = 0.1  # of the error, at the deviation that the flatness measures look for (Jiang et al. 2020)
_DRAWS = 10
_BOX, _STEPS = 5e-4, 20  # radius and steps of Keskar's sharpness
_RHO = 0.05  # radius of SAM


def once(method: Callable) -> Callable:
    """Compute at the first call with these arguments; a refusal is kept too, for what led to it may have cost much."""

    @functools.wraps(method)
    def kept(self, *args):
        key = (method.__name__, *args)
        if key not in self._found:
            try:
                self._found[key] = method(self, *args)
            except ValueError as error:
                self._found[key] = error
        if isinstance(self._found[key], ValueError):
            raise self._found[key]
        return self._found[key]

    return kept


def quantity(method: Callable) -> property:
    """A quantity that is computed once."""
    return property(once(method))


def total(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The sum over all entries of all tensors, in float64."""
    return torch.stack([tensor.double().sum() for tensor in tensors]).sum()


class Shared:
    """One network with its data and its start, and what measures ask of them; `passes` counts what that has cost."""

    def __init__(
        self,
        network: Network,
        inputs: Float[Tensor, "samples ..."],
        labels: Int[Tensor, " samples"],
        *,
        initial: Network | None,
        run: Run | None,
        seed: int,
    ):
        self.objective = Objective.of(network, inputs, labels)
        self.network, self.weights, self.labels = network, self.objective.network.params, labels
        self.input_shape, self.samples = tuple(inputs.shape[1:]), len(labels)
        self._initial, self._run, self._seed = initial, run, seed
        self._found, self.passes = {}, 0.0

    def number(self, value: float | int) -> Float[Tensor, ""]:
        """A number as a tensor beside the others."""
        return torch.tensor(float(value), dtype=torch.float64, device=self.labels.device)

    # The network

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights.values())

    @property
    def initial(self) -> Network:
        if self._initial is None:
            raise ValueError("initial is missing; give evaluate the network as it was before training, or its run")
        return self._initial

    @property
    def steps(self) -> int:
        if self._run is None:
            raise ValueError("run is missing; give evaluate what fit returned")
        return self._run.steps

    @quantity
    def displacement(self) -> Params:
        """w − w⁰."""
        start = start_of(self.initial, self.objective.network)
        return {name: w - start[name] for name, w in self.weights.items()}

    @quantity
    def square(self) -> Float[Tensor, ""]:
        """‖w‖²."""
        return total(w.double().square() for w in self.weights.values())

    @quantity
    def square_distance(self) -> Float[Tensor, ""]:
        """‖w − w⁰‖²."""
        return total(d.double().square() for d in self.displacement.values())

    # Its layers

    @quantity
    def outputs(self) -> list[int]:
        """The outputs h_i of each layer, of a convolution its channels."""
        return norms.layer_outputs(self.network)

    @property
    def depth(self) -> int:
        return len(self.outputs)

    @property
    def log_outputs(self) -> float:
        return sum(math.log(h) for h in self.outputs)

    @quantity
    def frobenius(self) -> Float[Tensor, " layers"]:
        return norms.frobenius_norms(self.network).double()

    @quantity
    def spectral(self) -> Float[Tensor, " layers"]:
        return norms.require_nonzero(norms.spectral_norms(self.network, input_shape=self.input_shape).double())

    @property
    def stable_ranks(self) -> Float[Tensor, " layers"]:
        spectral = self.spectral
        return (norms.operator_frobenius_norms(self.network, input_shape=self.input_shape) / spectral).square()

    @property
    def log_frobenius(self) -> Float[Tensor, ""]:
        return norms.log_product(self.frobenius)

    @property
    def log_spectral(self) -> Float[Tensor, ""]:
        return norms.log_product(self.spectral)

    @once
    def log_groups(self, p: float | int, q: float | int) -> Float[Tensor, ""]:
        return norms.log_product(norms.group_norms(self.network, p, q))

    @once
    def log_path(self, p: int) -> Float[Tensor, ""]:
        return norms.log_path_norm(self.network, input_shape=self.input_shape, p=p)

    @quantity
    def frobenius_distance(self) -> Float[Tensor, " layers"]:
        return norms.distances(self.network, self.initial).double()

    @quantity
    def row_distance(self) -> Float[Tensor, " layers"]:
        return norms.distances(self.network, self.initial, norm=(2, 1)).double()

    @quantity
    def spectral_distance(self) -> Float[Tensor, " layers"]:
        shape = self.input_shape
        return norms.distances(self.network, self.initial, norm="spectral", input_shape=shape).double()

    # Its outputs

    @quantity
    def logits(self) -> Float[Tensor, "samples classes"]:
        """The one forward pass that loss, entropy and margins share."""
        network = self.objective.network
        self.passes += 1
        with torch.no_grad():
            found = torch.cat([network.apply(self.weights, inputs) for inputs, _ in self.objective.batches])
        return require_finite(found, "output")

    @quantity
    def margins(self) -> Float[Tensor, " samples"]:
        return margins.margins_of_logits(self.logits, self.labels).double()

    @once
    def log_margin(self, percent: int) -> Float[Tensor, ""]:
        """The logarithm of the margins' percentile, which must be positive."""
        return margins.require_positive(margins.margin_percentile(self.margins, percent)).log()

    @property
    def log_inputs(self) -> Float[Tensor, ""]:
        """ln ‖X‖_F over all samples."""
        of_each = torch.linalg.vector_norm(self.objective.inputs.flatten(1), dim=1)  # in float64 all would take tenfold
        return torch.linalg.vector_norm(of_each, dtype=torch.float64).log()

    @property
    def cross_entropy(self) -> Float[Tensor, ""]:
        return F.cross_entropy(self.logits, self.labels)

    @property
    def negative_entropy(self) -> Float[Tensor, ""]:
        log_p = self.logits.log_softmax(-1)
        return (log_p.exp() * log_p).sum(-1).mean()

    # Its loss nearby

    def _counted(self, estimate: Estimate | Maximum) -> Estimate | Maximum:
        self.passes += estimate.passes
        return estimate

    @property
    def _data(self) -> tuple[Network, Tensor, Tensor]:
        return self.network, self.objective.inputs, self.labels

    def _generator(self) -> torch.Generator:
        return seeded_generator(None, self.labels.device, self._seed)

    @quantity
    def trace(self) -> Estimate:
        return self._counted(curvature.trace(*self._data, generator=self._generator()))

    @quantity
    def keskar(self) -> Float[Tensor, ""]:
        found = sharpness.keskar_sharpness(*self._data, radius=_BOX, steps=_STEPS, generator=self._generator())
        return self._counted(found).value

    @quantity
    def sam(self) -> Float[Tensor, ""]:
        self.passes += 4
        return sharpness.sam_sharpness(*self._data, radius=_RHO)

    @once
    def sigma(self, kind: str) -> Estimate:
        """The deviation at which the error has risen by a tenth; `displacement`: in proportion to |w − w⁰|."""
        noise = ("magnitude", self.displacement) if kind == "displacement" else kind
        wrong = (self.margins <= 0).double().mean()
        if wrong + _INCREASE > 1:
            raise ValueError(
                f"network: it is wrong on {wrong:.0%} of these data, and no noise can raise that by {_INCREASE:.0%}"
            )
        return self._searched(of="error", increase=_INCREASE, noise=noise)

    def _searched(self, **what) -> Estimate:
        found = self._counted(pac_bayes.largest_sigma(*self._data, draws=_DRAWS, generator=self._generator(), **what))
        if not found.converged:
            raise ValueError(
                f"network: no deviation of the weights between {found.lower:.3g} and {found.upper:.3g} raises the "
                f"{what['of']} by {what['increase']}; the network may be no better than chance on these data"
            )
        return found

    @quantity
    def scaled_kl(self) -> Estimate:
        """KL = ½ Σ (w_i/σ_i)² where σ_i = α(10|w_i| + 1) raises the loss by a half: it goes as 1/α²."""
        found = self._searched(of="loss", increase=0.5, noise="scaled")
        spread = deviations(self.weights, found.value, "scaled")
        kl = pac_bayes.kl_of_means(self.weights, spread, None)
        return Estimate(kl, 2 * kl * found.standard_error / found.value, 0.0)
