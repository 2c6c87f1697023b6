"""What the measures of one network share: each quantity is computed when it is first asked for, and once."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from genlib import curvature, margins, norms, pac_bayes, sensitivity, sharpness
from genlib._losses import sample_losses, zero_one_loss
from genlib._noise import Noise, deviations
from genlib._objective import Objective, require_finite, seeded_generator, start_of
from genlib.estimates import Eigenpairs, Estimate, Maximum
from genlib.network import Network, Params, dense_steps
from genlib.train import Run

__all__ = ["Shared", "total"]

_INCREASE = 0.1  # of the error, at the deviation that the flatness measures look for (Jiang et al. 2020)
_DRAWS = 10
_KESKAR, _WORST, _STEPS = 5e-4, 2e-3, 20  # radii of the boxes around |w| + 1, and steps of the ascent
_RHO = 0.05  # radius of SAM
_SIGMAS = {"isotropic": 0.05, "magnitude": 0.04, "displacement": 0.04, "scaled": 0.02}  # where a search starts
_RADII = {"isotropic": 5e-3, "magnitude": 0.03, "displacement": 0.03}
_EIGENVALUES, _TOLERANCE = 10, 1e-4
_VECTORS = 6  # for the rest of the norm of the Hessian
_POINTS, _SAMPLES = 256, 64  # on an ellipse, and how many samples there are for each


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


def together(method: Callable) -> Callable:
    """A search, computed once and its passes counted; by all networks of a stack at once, where that is faster."""

    @once
    @functools.wraps(method)
    def searched(self, *args):
        found = None
        if self._stack is not None:
            whole, index = self._stack
            with contextlib.suppress(ValueError):  # of one network among them is none of the others'
                found = _of_one(getattr(whole, method.__name__)(*args), index)
        found = method(self, *args) if found is None else found
        self.passes += found.passes
        return found

    return searched


def _of_one(found: Estimate | Maximum, index: int) -> Estimate | Maximum:
    """What a search over a stack found for one of its networks."""
    tensors = {field.name: getattr(found, field.name) for field in fields(found)}
    return replace(found, **{name: t[..., index] for name, t in tensors.items() if isinstance(t, Tensor)})


def total(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The sum over all entries of all tensors, in float64."""
    return torch.stack([tensor.double().sum() for tensor in tensors]).sum()


class Shared:
    """One network with its data and its start, and what measures ask of them; `passes` counts what that has cost.

    `stack` is the same of all networks of a stack, if it is one of those, and its place there.
    """

    def __init__(
        self,
        network: Network,
        inputs: Float[Tensor, "samples ..."],
        labels: Int[Tensor, "..."],
        *,
        initial: Network | None,
        first_epoch: Network | None = None,
        run: Run | None = None,
        seed: int,
        stack: "tuple[Shared, int] | None" = None,
    ):
        self.objective = Objective.of(network, inputs, labels)
        self.network, self.weights, self.labels = network, self.objective.network.params, labels
        self.input_shape, self.samples = tuple(inputs.shape[labels.dim() :]), labels.shape[-1]
        self._initial, self._first_epoch, self._run, self._seed = initial, first_epoch, run, seed
        self._stack = stack
        self._found, self.passes = {}, 0.0

    @classmethod
    def of_each(
        cls,
        network: Network,
        inputs: Tensor,
        labels: Int[Tensor, "..."],
        *,
        initial: Network | None,
        first_epoch: Network | None,
        run: Sequence[Run] | None,
        seed: int,
    ) -> "list[Shared]":
        """Those of a stack's networks, which share searches where that is faster."""
        whole = None
        if _faster_together(network):
            whole = cls(network, inputs, labels, initial=initial, seed=seed)
        nothing = [None] * network.size
        return [
            cls(
                one,
                inputs[i] if labels.dim() == 2 else inputs,
                labels[i] if labels.dim() == 2 else labels,
                initial=start,
                first_epoch=early,
                run=own,
                seed=seed,
                stack=whole and (whole, i),
            )
            for i, (one, start, early, own) in enumerate(
                zip(
                    network.each,
                    initial.each if initial else nothing,
                    first_epoch.each if first_epoch else nothing,
                    run or nothing,
                    strict=True,
                )
            )
        ]

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
    def run(self) -> Run:
        if self._run is None:
            raise ValueError("run is missing; give evaluate what fit returned")
        return self._run

    def steps_to(self, loss: float) -> int:
        """The step of the first check at which the training loss was no larger."""
        history = self.run.history
        if not (low := history["loss"] <= loss).any():
            raise ValueError(f"run: its training loss never fell to {loss}; train it further")
        return int(history.loc[low.idxmax(), "step"])

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
        self._require_two_outputs()
        return margins.margins_of_logits(self.logits, self.labels).double()

    @staticmethod
    def percentile(margin: Float[Tensor, " samples"], percent: int = 10) -> Float[Tensor, ""]:
        """A percentile of margins, which must be positive."""
        return margins.require_positive(margins.margin_percentile(margin, percent))

    @once
    def log_margin(self, percent: int) -> Float[Tensor, ""]:
        return self.percentile(self.margins, percent).log()

    @quantity
    def input_margins(self) -> Float[Tensor, " samples"]:
        """How far each input is from where the network changes its mind, to first order."""
        self._require_two_outputs()
        found = margins.layer_margins(*self._data)[0].double()
        self.passes += 2
        return found

    @property
    def log_inputs(self) -> Float[Tensor, ""]:
        """ln ‖X‖_F over all samples."""
        of_each = torch.linalg.vector_norm(self.objective.inputs.flatten(1), dim=1)  # in float64 all would take tenfold
        return torch.linalg.vector_norm(of_each, dtype=torch.float64).log()

    @property
    def cross_entropy(self) -> Float[Tensor, ""]:
        return sample_losses(self.objective.loss, self.logits, self.objective.labels).mean()

    @property
    def negative_entropy(self) -> Float[Tensor, ""]:
        # The sigmoid's two probabilities are the softmax of 0 and f.
        logits = F.pad(self.logits, (1, 0)) if self.objective.outputs == 1 else self.logits
        log_p = logits.log_softmax(-1)
        return (log_p.exp() * log_p).sum(-1).mean()

    # How it hangs on the inputs

    @quantity
    def jacobian_norms(self) -> dict[str, Float[Tensor, " samples"]]:
        """‖J(x)‖_F of the probabilities and of the logits."""
        found = sensitivity.jacobian_norms(self.network, self.objective.inputs, of=("probabilities", "logits"))
        self.passes += 1 + self.objective.outputs
        return found

    @quantity
    def transitions(self) -> Estimate:
        """Changes of a linear piece along ellipses through three samples each."""
        count = -(-self.samples // _SAMPLES)
        generator, device = self._generator(), self.labels.device
        chosen = torch.randint(self.samples, (3, count), generator=generator, device=device)
        paths = sensitivity.ellipse(*self.objective.inputs[chosen], points=_POINTS, dim=1)
        changes = sensitivity.transitions(self.network, paths, dim=1).double().sum(1)
        self.passes += count * _POINTS / self.samples
        error = changes.std() / count**0.5 if count > 1 else self.number(math.inf)
        return Estimate(changes.mean(), error, 0.0)

    # Its loss nearby

    @property
    def _data(self) -> tuple[Network, Tensor, Tensor]:
        return self.network, self.objective.inputs, self.labels

    def _generator(self) -> torch.Generator:
        return seeded_generator(None, self.labels.device, self._seed)

    @quantity
    def trace(self) -> Estimate:
        found = curvature.trace(*self._data, generator=self._generator())
        self.passes += found.passes
        return found

    @quantity
    def eigenpairs(self) -> Eigenpairs:
        """The largest of the Hessian."""
        found = curvature.top_eigenvalues(*self._data, _EIGENVALUES, tolerance=_TOLERANCE, generator=self._generator())
        self.passes += found.passes
        return found

    @property
    def log_eigenvalues(self) -> Float[Tensor, " k"]:
        values = self.eigenpairs.values.double()
        if not values.min() > _TOLERANCE * values[0].abs():
            raise ValueError(
                f"network: of the {_EIGENVALUES} largest eigenvalues of its Hessian the last is {values.min():.1e}, "
                f"the first {values[0]:.1e}: its logarithm is that of noise; measure it on more samples"
            )
        return values.log()

    @quantity
    def hessian_norm(self) -> Estimate:
        known = self.eigenpairs
        found = curvature.frobenius_norm(*self._data, vectors=_VECTORS, known=known, generator=self._generator())
        self.passes += found.passes
        return found

    @quantity
    def gradient_variance(self) -> Float[Tensor, ""]:
        self.passes += 3
        return curvature.gradient_variance(*self._data).double()

    @quantity
    def first_gradient_variance(self) -> Float[Tensor, ""]:
        """The same, after the first epoch."""
        if self._first_epoch is None:
            raise ValueError("first_epoch is missing; give evaluate the network as it was after one epoch of training")
        start_of(self._first_epoch, self.objective.network)
        self.passes += 3
        return curvature.gradient_variance(self._first_epoch, *self._data[1:]).double()

    @together
    def keskar(self) -> Maximum:
        return sharpness.keskar_sharpness(*self._data, radius=_KESKAR, steps=_STEPS, generator=self._generator())

    @together
    def worst_case(self) -> Maximum:
        return sharpness.worst_case_sharpness(*self._data, radius=_WORST, steps=_STEPS, generator=self._generator())

    @together
    def sam(self) -> Estimate:
        rise = sharpness.sam_sharpness(*self._data, radius=_RHO)
        return Estimate(rise, torch.zeros_like(rise), 4.0)

    @together
    def _radius(self, kind: str) -> sharpness.RadiusSearch:
        return sharpness.largest_radius(*self._data, increase=_INCREASE, noise=self._noise(kind), start=_RADII[kind])

    def _sigma(self, of: str, increase: float, kind: str) -> pac_bayes.SigmaSearch:
        # One by one: together, all would go on until the last has found its own.
        found = pac_bayes.largest_sigma(
            *self._data,
            of=of,
            increase=increase,
            noise=self._noise(kind),
            draws=_DRAWS,
            start=_SIGMAS[kind] / self._typical(kind),
            generator=self._generator(),
        )
        self.passes += found.passes
        return found

    def _typical(self, kind: str) -> Float[Tensor, ""]:
        """The size of a weight by which noise of this kind goes, on average."""
        if kind not in ("magnitude", "displacement"):
            return self.number(1)
        return ((self.square if kind == "magnitude" else self.square_distance) / self.parameters).sqrt()

    def _noise(self, kind: str) -> Noise:
        """The law of the noise; `displacement`: in proportion to |w − w⁰|."""
        return ("magnitude", self.displacement) if kind == "displacement" else kind

    @once
    def sigma(self, kind: str) -> Estimate:
        """The deviation at which the error has risen by a tenth."""
        self._require_room()
        return self._settled(self._sigma("error", _INCREASE, kind), "error", _INCREASE)

    @once
    def radius(self, kind: str) -> Estimate:
        """The largest box in which ascent raises the error by no more than a tenth."""
        self._require_room()
        return self._settled(self._radius(kind), "error", _INCREASE)

    @quantity
    def scaled_kl(self) -> Estimate:
        """KL = ½ Σ (w_i/σ_i)² where σ_i = α(10|w_i| + 1) raises the loss by a half: it goes as 1/α²."""
        found = self._settled(self._sigma("loss", 0.5, "scaled"), "loss", 0.5)
        spread = deviations(self.weights, found.value, "scaled")
        kl = pac_bayes.kl_of_means(self.weights, spread, None)
        return Estimate(kl, 2 * kl * found.standard_error / found.value, 0.0)

    def _require_two_outputs(self) -> None:
        if self.objective.outputs == 1:
            raise ValueError("network: it has one output, and a margin is between two; give it one output a class")

    def _require_room(self) -> None:
        wrong = zero_one_loss(self.logits, self.labels).double().mean()
        if wrong + _INCREASE > 1:
            raise ValueError(
                f"network: it is wrong on {wrong:.0%} of these data, and no noise can raise that by {_INCREASE:.0%}"
            )

    @staticmethod
    def _settled(found: Estimate, of: str, increase: float) -> Estimate:
        if not found.converged:
            raise ValueError(
                f"network: no deviation of the weights between {found.lower:.3g} and {found.upper:.3g} raises the "
                f"{of} by {increase}; the network may be no better than chance on these data"
            )
        return found


def _faster_together(network: Network) -> bool:
    """Convolutions and wide layers fill a CPU by themselves; a GPU gains from every stack."""
    first = next(iter(network.params.values()))
    wide = max(w.numel() for w in network.params.values()) > network.size * 2**14
    return first.device.type != "cpu" or (dense_steps(network.module) is not None and not wide)
