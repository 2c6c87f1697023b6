"""What the measures of one network ask of its weights and outputs, each computed when first asked for, and once."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from genlib import margins, norms, sensitivity
from genlib.estimates import Estimate
from genlib.measures.once import once, quantity
from genlib.network import Network, Params
from genlib.network.blocks import EMBEDDINGS
from genlib.network.door import Entangled
from genlib.network.losses import logits_of_classes, sample_losses
from genlib.network.objective import Objective, require_finite, seeded_generator, stand_ins, start_of
from genlib.network.parts import above
from genlib.network.precision import upcast_network
from genlib.train import Run

__all__ = ["Quantities", "total"]

_NO_DATA = "data are missing; give evaluate the training samples, inputs and labels"
_NO_LABELS = "labels are missing; give evaluate inputs and labels, as a pair or by their names in a dict"
_POINTS, _SAMPLES = 256, 64  # on an ellipse, and how many samples there are for each


def _there(value):
    """The value itself, or why there is none."""
    if isinstance(value, ValueError):
        raise value
    return value


def total(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The sum over all entries of all tensors, in float64."""
    return torch.stack([tensor.double().sum() for tensor in tensors]).sum()


class Quantities:
    """One network with its data and its start, and what it is as it stands; `passes` counts what that has cost."""

    def __init__(
        self,
        network: Network,
        inputs: Tensor | None,
        labels: Int[Tensor, "..."] | None,
        *,
        initial: Network | None,
        first_epoch: Network | None = None,
        run: Run | None = None,
        input_shape: tuple[int, ...] | None = None,
        seed: int,
    ):
        if not network.params:
            raise ValueError("network has no parameters; there is nothing to measure")
        if inputs is None:
            network.require_eval()
            self._objective, self.network = ValueError(_NO_DATA), upcast_network(network)
        else:
            try:
                self._objective = Objective.of(network, inputs, stand_ins(inputs) if labels is None else labels)
                self.network = self._objective.network  # which has passed the door
            except Entangled as refusal:
                self._objective, self.network = refusal, upcast_network(network)
            input_shape = tuple(inputs.shape[1 if labels is None else labels.dim() :])
        self._labels = ValueError(_NO_DATA if inputs is None else _NO_LABELS) if labels is None else labels.long()
        self._input_shape = input_shape
        self.weights = self.network.params
        self._device = next(iter(self.weights.values())).device
        self._initial = initial and replace(initial, ran=self.network.ran)
        self._first_epoch, self._run, self._seed = first_epoch, run, seed
        self._found, self.passes = {}, 0.0

    def number(self, value: float | int) -> Float[Tensor, ""]:
        """A number as a tensor beside the others."""
        return torch.tensor(float(value), dtype=torch.float64, device=self._device)

    @property
    def unlabelled(self) -> Objective:
        """The objective for what hangs on no label; refused where no output hangs on one sample alone."""
        return _there(self._objective)

    @property
    def objective(self) -> Objective:
        """The mean loss over the data; refused where no loss hangs on one sample alone."""
        _there(self._labels)
        return self.unlabelled

    @property
    def labels(self) -> Int[Tensor, "..."]:
        return _there(self._labels)

    @property
    def lacking(self) -> set[str]:
        """What measures need and was not given, or is refused."""
        given = {
            "data": self._objective,
            "labels": self._labels,
            "initial": self._initial,
            "first_epoch": self._first_epoch,
            "run": self._run,
        }
        return {need for need, one in given.items() if one is None or isinstance(one, ValueError)}

    @property
    def samples(self) -> int:
        return self.unlabelled.samples

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        if self._input_shape is None:
            raise ValueError("input_shape is missing; give evaluate the shape of one sample, or data")
        return self._input_shape

    # The network

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights.values())

    @property
    def initial(self) -> Network:
        if self._initial is None:
            raise ValueError("initial is missing; give evaluate the network as it was before training, or its run")
        self._initial.require_eval("initial")
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
        start = start_of(self.initial, self.network)
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
    def unknown(self) -> dict[str, str]:
        """The parts that no norm of layers knows, and that are left out of all quantities of layers."""
        return norms.unknown_parts(self.network)

    @property
    def part(self) -> str:
        """Over which part of the network the quantities of layers are, if not over all of it."""
        if not self.unknown:
            return ""
        named = [f"{name} ({kind})" for name, kind in self.unknown.items()]
        more = [f"{len(named) - 3} more"] if len(named) > 3 else []
        *first, last = [*named[:3], *more]
        share = sum(w.numel() for name, w in self.weights.items() if self.unknown.keys() & {*above(name), name})
        return (
            f"over part of the network, without {', '.join(first)}{' and ' * bool(first)}{last}, which no norm of "
            f"layers knows: {100 * share / self.parameters:.3g} % of its parameters"
        )

    @quantity
    def shapes(self) -> list[norms.LayerShape]:
        """Outputs, inputs and taps of each layer, of a convolution its channels and the places of its kernel."""
        return norms.layer_shapes(self.network, exclude=self.unknown)

    @property
    def depth(self) -> int:
        return len(self.shapes)

    @property
    def log_outputs(self) -> float:
        return sum(math.log(shape.outputs) for shape in self.shapes)

    @quantity
    def frobenius(self) -> Float[Tensor, " layers"]:
        return norms.frobenius_norms(self.network, exclude=self.unknown).double()

    @quantity
    def spectral(self) -> Float[Tensor, " layers"]:
        shape = self.input_shape
        return norms.require_nonzero(
            norms.spectral_norms(self.network, input_shape=shape, exclude=self.unknown).double()
        )

    @property
    def stable_ranks(self) -> Float[Tensor, " layers"]:
        spectral = self.spectral
        frobenius = norms.operator_frobenius_norms(self.network, input_shape=self.input_shape, exclude=self.unknown)
        return (frobenius / spectral).square()

    @property
    def log_frobenius(self) -> Float[Tensor, ""]:
        return norms.log_product(self.frobenius)

    @property
    def log_spectral(self) -> Float[Tensor, ""]:
        return norms.log_product(self.spectral)

    @once
    def log_groups(self, p: float | int, q: float | int) -> Float[Tensor, ""]:
        return norms.log_product(norms.group_norms(self.network, p, q, exclude=self.unknown))

    @once
    def log_path(self, p: int) -> Float[Tensor, ""]:
        return norms.log_path_norm(self.network, input_shape=self.input_shape, p=p)

    @quantity
    def frobenius_distance(self) -> Float[Tensor, " layers"]:
        return self._distances("frobenius")

    @quantity
    def row_distance(self) -> Float[Tensor, " layers"]:
        return self._distances((2, 1))

    @quantity
    def spectral_distance(self) -> Float[Tensor, " layers"]:
        return self._distances("spectral")

    def _distances(self, norm: str | tuple[int, int]) -> Float[Tensor, " layers"]:
        shape = self.input_shape if norm == "spectral" else None
        found = norms.distances(self.network, self.initial, norm=norm, input_shape=shape, exclude=self.unknown)
        return found.double()

    # Its outputs

    @quantity
    def logits(self) -> Float[Tensor, "samples classes"]:
        """The one forward pass that loss, entropy and margins share."""
        batches = self.unlabelled.batches
        self.passes += 1
        with torch.no_grad():
            found = torch.cat([self.network.apply(self.weights, inputs) for inputs, _ in batches])
        return require_finite(found, "output")

    @quantity
    def margins(self) -> Float[Tensor, " samples"]:
        labels = self.labels
        return margins.margins_of_logits(self.logits, labels).double()

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
        found = margins.input_margins(self.network, self._varied, self.labels).double()
        self.passes += 2
        return found

    @quantity
    def input_norms(self) -> Float[Tensor, " samples"]:
        """‖x‖₂ of each sample."""
        inputs = self._inputs
        if not inputs.is_floating_point() and any(isinstance(m, EMBEDDINGS) for m in self.network.module.modules()):
            raise ValueError("inputs are indices of an embedding, which have no norm; take a measure without it")
        inputs = inputs if inputs.is_floating_point() else inputs.double()
        return torch.linalg.vector_norm(inputs.flatten(1), dim=1).double()  # in float64 all would take tenfold

    @property
    def log_inputs(self) -> Float[Tensor, ""]:
        """ln ‖X‖_F over all samples."""
        return torch.linalg.vector_norm(self.input_norms).log()

    @property
    def cross_entropy(self) -> Float[Tensor, ""]:
        return sample_losses(self.objective.loss, self.logits, self.labels).mean()

    @property
    def negative_entropy(self) -> Float[Tensor, ""]:
        log_p = logits_of_classes(self.logits).log_softmax(-1)
        return (log_p.exp() * log_p).sum(-1).mean()

    # How it hangs on the inputs

    @quantity
    def jacobian_norms(self) -> dict[str, Float[Tensor, " samples"]]:
        """‖J(x)‖_F of the probabilities and of the logits."""
        found = sensitivity.jacobian_norms(self.network, self._varied, of=("probabilities", "logits"))
        self.passes += 1 + self.unlabelled.classes
        return found

    @quantity
    def transitions(self) -> Estimate:
        """Changes of a linear piece along ellipses through three samples each."""
        count = -(-self.samples // _SAMPLES)
        chosen = torch.randint(self.samples, (3, count), generator=self._generator(), device=self._device)
        paths = sensitivity.ellipse(*self._varied[chosen], points=_POINTS, dim=1)
        changes = sensitivity.transitions(self.network, paths, dim=1).double().sum(1)
        self.passes += count * _POINTS / self.samples
        error = changes.std() / count**0.5 if count > 1 else self.number(math.inf)
        return Estimate(changes.mean(), error, 0.0)

    # For the kernels

    @property
    def _data(self) -> tuple[Network, Tensor, Tensor]:
        return self.network, self.objective.inputs, self.labels

    def _generator(self) -> torch.Generator:
        return seeded_generator(None, self._device, self._seed)

    @property
    def _inputs(self) -> Tensor:
        inputs = self.unlabelled.inputs
        if self.network.arguments is not None:
            raise ValueError("inputs are several tensors, or one by name; this needs a forward that takes one tensor")
        return inputs

    @property
    def _varied(self) -> Float[Tensor, "samples ..."]:
        """The inputs, for what is about a small change of them."""
        inputs = self._inputs
        if not inputs.is_floating_point():
            raise ValueError(f"inputs is of {inputs.dtype}, and this moves them; make them float, if they can be")
        return inputs
