"""What the measures of one network share: its quantities, and the searches in the loss around it."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from genlib import bayes, curvature, pac_bayes, sharpness
from genlib.estimates import Eigenpairs, Estimate, Maximum
from genlib.measures.criteria import Criteria
from genlib.measures.functions import FunctionQuantities
from genlib.measures.once import once, quantity
from genlib.measures.quantities import Quantities
from genlib.network import Network, dense_steps
from genlib.network.derivatives import require_derivatives, twice_differentiable
from genlib.network.door import Entangled
from genlib.network.losses import Loss, zero_one_loss
from genlib.network.objective import measurable, require_finite, stand_ins, start_of, with_slope
from genlib.network.targets import sample_axes, with_targets
from genlib.sharpness import deviations
from genlib.sharpness.noise import FLOOR, Noise
from genlib.train import Run

__all__ = ["Shared"]

_INCREASE = 0.1  # of the error, at the deviation that the flatness measures look for (Jiang et al. 2020)
_DRAWS = 10
_KESKAR, _WORST, _STEPS = 5e-4, 2e-3, 20  # radii of the boxes around |w| + 1, and steps of the ascent
_RHO = 0.05  # radius of SAM
_SIGMAS = {"isotropic": 0.05, "magnitude": 0.04, "displacement": 0.04, "scaled": 0.02}  # where a search starts
_ASCENT = 20  # steps of the ascent in a box; twice as many leave the order of networks, at τ ≥ 0.95
_RADII = {"isotropic": 5e-3, "magnitude": 0.03, "displacement": 0.03}
_TOLERANCE = 1e-5
_VECTORS = 6  # for the rest of the norm of the Hessian


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


class Shared(Criteria, FunctionQuantities, Quantities):
    """One network's quantities, and what the loss is like nearby.

    `stack` is the same of all networks of a stack, if it is one of those, and its place there.
    """

    def __init__(self, *arguments, stack: "tuple[Shared, int] | None" = None, k: int = 10, **more):
        super().__init__(*arguments, **more)
        self._stack, self.k = stack, k

    @classmethod
    def of_each(
        cls,
        network: Network,
        inputs: Tensor | None,
        labels: Shaped[Tensor, "..."] | None,
        *,
        initial: Network | None,
        first_epoch: Network | None,
        run: Sequence[Run] | None,
        loss: Loss,
        **more,
    ) -> "list[Shared]":
        """Those of a stack's networks, which share searches where that is faster."""
        if inputs is not None:
            with contextlib.suppress(Entangled):  # each of them finds that again
                _, numbers = with_targets(loss, inputs, stand_ins(inputs) if labels is None else labels, network.size)
                network, _ = measurable(network, inputs, numbers, None)
        whole = None
        if labels is not None and _faster_together(network):
            whole = cls(network, inputs, labels, initial=initial, loss=loss, **more)
        nothing, of_each = [None] * network.size, inputs is not None and sample_axes(inputs, labels, network.size) == 2
        return [
            cls(
                one,
                inputs[i] if of_each else inputs,
                labels[i] if of_each else labels,
                initial=start,
                first_epoch=early,
                run=own,
                loss=loss,
                **more,
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

    @quantity
    def trace(self) -> Estimate:
        found = curvature.trace(*self._data, **self._options, generator=self._generator())
        self.passes += found.passes
        return found

    @quantity
    def eigenpairs(self) -> Eigenpairs:
        """The largest of the Hessian."""
        k = min(self.k, self.parameters)
        found = curvature.top_eigenvalues(
            *self._data, k, **self._options, tolerance=_TOLERANCE, generator=self._generator()
        )
        self.passes += found.passes
        return found

    @property
    def log_eigenvalues(self) -> Float[Tensor, " k"]:
        values = self.eigenpairs.values.double()
        if not values.min() > _TOLERANCE * values[0].abs():
            raise ValueError(
                f"network: of the {len(values)} largest eigenvalues of its Hessian the last is {values.min():.1e}, "
                f"the first {values[0]:.1e}: its logarithm is that of noise; measure it on more samples"
            )
        return values.log()

    @quantity
    def hessian_norm(self) -> Estimate:
        known = self.eigenpairs
        found = curvature.frobenius_norm(
            *self._data, **self._options, vectors=_VECTORS, known=known, generator=self._generator()
        )
        self.passes += found.passes
        return found

    @quantity
    def gradient_variance(self) -> Float[Tensor, ""]:
        found = curvature.gradient_variance(*self._data, **self._options).double()
        self.passes += 3
        return found

    @quantity
    def first_gradient_variance(self) -> Float[Tensor, ""]:
        """The same, after the first epoch."""
        if self._first_epoch is None:
            raise ValueError("first_epoch is missing; give evaluate the network as it was after one epoch of training")
        start_of(self._first_epoch, self.network)
        early = self._first_epoch.moving(self.weights)
        found = curvature.gradient_variance(early, *self._data[1:], **self._options).double()
        self.passes += 3
        return found

    @quantity
    def fisher_rao(self) -> Float[Tensor, ""]:
        """(1/m) Σ_j ⟨w, ∇_w ℓ_j⟩², the square of the Fisher–Rao norm (Liang et al. 2019).

        Σ_j c_j ℓ_j is differentiated in w, and its product with w in c: no sample's own gradient is formed. Cost: a
        forward pass, a backward one, and one back through that. Memory: the graph of both for a chunk.
        """
        require_derivatives(self.objective, twice=True)
        leaves = {name: w.detach().requires_grad_() for name, w in self.weights.items()}
        square = self.number(0)
        for inputs, labels in self.objective.batches:
            with torch.enable_grad(), twice_differentiable():
                losses = self.objective.losses(self._moved.apply(leaves, inputs), labels)
                c = torch.ones_like(losses, requires_grad=True)
                loss = with_slope((c * losses).sum())
                gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, materialize_grads=True)
                along = sum((w.detach() * g).sum() for w, g in zip(leaves.values(), gradient, strict=True))
            (of_each,) = torch.autograd.grad(along, c)
            square = square + of_each.double().square().sum() / self.samples
        self.passes += 5
        return require_finite(square, "Fisher-Rao norm")

    @quantity
    def learning_coefficient(self) -> Estimate:
        """By chains that agree."""
        found = bayes.learning_coefficient(*self._data, **self._options, generator=self._generator())
        self.passes += found.passes
        if not found.converged:
            raise ValueError(
                f"network: its chains disagree (R̂ = {found.disagreement:.3g}); bayes.learning_coefficient takes more "
                "draws, or a larger localization"
            )
        return found

    @together
    def keskar(self) -> Maximum:
        return self._ascent(sharpness.keskar_sharpness, _KESKAR)

    @together
    def worst_case(self) -> Maximum:
        return self._ascent(sharpness.worst_case_sharpness, _WORST)

    def _ascent(self, kernel: Callable, radius: float) -> Maximum:
        return kernel(*self._data, **self._options, radius=radius, steps=_STEPS, generator=self._generator())

    @together
    def sam(self) -> Estimate:
        rise = sharpness.sam_sharpness(*self._data, **self._options, radius=_RHO)
        return Estimate(rise, torch.zeros_like(rise), 4.0)

    @together
    def _radius(self, kind: str) -> sharpness.RadiusSearch:
        return sharpness.largest_radius(
            *self._classes,
            **self._options,
            increase=_INCREASE,
            noise=self._noise(kind),
            steps=_ASCENT,
            start=_RADII[kind],
        )

    def _sigma(self, of: str, increase: float, kind: str) -> pac_bayes.SigmaSearch:
        # One by one: together, all would go on until the last has found its own.
        found = pac_bayes.largest_sigma(
            *(self._classes if of == "error" else self._data),
            **self._options,
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
        return self._settled(self._sigma("error", _INCREASE, kind), "error", _INCREASE, kind)

    @once
    def radius(self, kind: str) -> Estimate:
        """The largest box in which ascent raises the error by no more than a tenth."""
        self._require_room()
        return self._settled(self._radius(kind), "error", _INCREASE, kind)

    @quantity
    def scaled_kl(self) -> Estimate:
        """KL = ½ Σ (w_i/σ_i)² where σ_i = α(10|w_i| + 1) raises the loss by a half: it goes as 1/α²."""
        found = self._settled(self._sigma("loss", 0.5, "scaled"), "loss", 0.5, "scaled")
        spread = deviations(self.weights, found.value, "scaled")
        kl = pac_bayes.kl_of_means(self.weights, spread, None)
        return Estimate(kl, 2 * kl * found.standard_error / found.value, 0.0)

    def _require_room(self) -> None:
        labels = self.labels
        wrong = zero_one_loss(self.logits, labels).double().mean()
        if wrong + _INCREASE > 1:
            raise ValueError(
                f"network: it is wrong on {wrong:.0%} of these data, and no noise can raise that by {_INCREASE:.0%}"
            )

    @staticmethod
    def _settled(found: Estimate, of: str, increase: float, kind: str) -> Estimate:
        if not found.converged and found.lower == 0:
            least = f", beside {FLOOR} of each weight," if kind in ("magnitude", "displacement") else ""
            raise ValueError(
                f"network: the smallest change of the weights that is tried, {found.upper:.1g}{least} raises the {of} "
                f"by more than {increase} already; many margins are next to zero for it, see margins.output_margins"
            )
        if not found.converged:
            raise ValueError(
                f"network: a change of the weights of {found.lower:.3g}, the largest that is tried, raises the {of} by "
                f"less than {increase}; it may be no better than chance on these data, or hardly hang on its weights"
            )
        return found


def _faster_together(network: Network) -> bool:
    """Convolutions and wide layers fill a CPU by themselves; a GPU gains from every stack."""
    first = next(iter(network.params.values()))
    wide = max(w.numel() for w in network.params.values()) > network.size * 2**14
    return first.device.type != "cpu" or (dense_steps(network.module) is not None and not wide)
