"""What the measures of one network ask of its weights and outputs, each computed when first asked for, and once."""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from genlib import margins, sensitivity
from genlib.estimates import Estimate
from genlib.measures.layer_quantities import LayerQuantities
from genlib.measures.once import once, quantity
from genlib.network import Network, Params
from genlib.network.blocks import EMBEDDINGS
from genlib.network.door import Entangled
from genlib.network.losses import LOSSES, Loss, logits_of_classes, sample_losses
from genlib.network.objective import (
    Objective,
    require_finite,
    require_labels,
    seeded_generator,
    stand_ins,
    start_of,
)
from genlib.network.precision import upcast_network
from genlib.network.targets import sample_axes
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


class Quantities(LayerQuantities):
    """One network with its data and its start, and what it is as it stands; `passes` counts what that has cost."""

    def __init__(
        self,
        network: Network,
        inputs: Tensor | None,
        labels: Shaped[Tensor, "..."] | None,
        *,
        initial: Network | None,
        first_epoch: Network | None = None,
        run: Run | None = None,
        input_shape: tuple[int, ...] | None = None,
        loss: Loss = "cross_entropy",
        chunk_size: int | None = None,
        trainable_only: bool = False,
        seed: int,
    ):
        if not network.params:
            raise ValueError("network has no parameters; there is nothing to measure")
        moved = network.trainable if trainable_only else network
        if inputs is None:
            network.require_eval()
            self._objective, moved = ValueError(_NO_DATA), upcast_network(moved)
        else:
            try:
                compared = (stand_ins(inputs), "cross_entropy") if labels is None else (labels, loss)
                self._objective = Objective.of(moved, inputs, *compared, chunk_size)
                moved = self._objective.network  # which has passed the door
            except Entangled as refusal:
                self._objective, moved = refusal, upcast_network(moved)
            input_shape = tuple(inputs.shape[sample_axes(inputs, labels, network.size) :])
        self._moved, self.network = moved, moved.moving(network.params)
        self._targets = ValueError(_NO_DATA if inputs is None else _NO_LABELS) if labels is None else labels
        self._loss = loss
        self._input_shape = input_shape
        self.weights = moved.params
        self._device = next(iter(self.weights.values())).device
        self._initial = initial and replace(initial, ran=self.network.ran)
        self._first_epoch, self._run, self._seed = first_epoch, run, seed
        self._at_once = {} if chunk_size is None else {"chunk_size": chunk_size}
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
        _there(self._targets)
        return self.unlabelled

    @quantity
    def labels(self) -> Int[Tensor, " samples"]:
        """Those of classes, one a sample; refused where the data have none, or other targets."""
        labels = _there(self._targets)
        self.require_classes()
        return labels.long()

    @once
    def require_classes(self) -> None:
        """Refuse outputs that are compared with other than classes, and so tell none apart."""
        labels = self._targets
        if not isinstance(labels, Tensor):
            return
        if labels.is_floating_point() or labels.dim() > 1:
            raise ValueError("labels are no classes, and this is about classes; it needs one whole number a sample")
        require_labels(labels, self.unlabelled.outputs)

    @property
    def lacking(self) -> set[str]:
        """What measures need and was not given, or is refused."""
        given = {
            "data": self._objective,
            "labels": self._targets,
            "initial": self._initial,
            "first_epoch": self._first_epoch,
            "run": self._run,
        }
        lacking = {need for need, one in given.items() if one is None or isinstance(one, ValueError)}
        with contextlib.suppress(ValueError):
            self.require_classes()
            return lacking
        return {*lacking, "classes", "margin"}

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

    # Its outputs

    @quantity
    def logits(self) -> Float[Tensor, "samples classes"]:
        """The one forward pass that loss, entropy and margins share."""
        found = self.unlabelled.logits()
        self.passes += 1
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
        found = margins.input_margins(self.network, self._varied, self.labels, **self._at_once).double()
        self.passes += 2
        return found

    @quantity
    def input_norms(self) -> Float[Tensor, " samples"]:
        """‖x‖₂ of each sample."""
        inputs = self._inputs
        if not inputs.is_floating_point() and any(isinstance(m, EMBEDDINGS) for m in self.network.module.modules()):
            raise ValueError("inputs are indices of an embedding, which have no norm; take a measure without it")
        chunks = (x.flatten(1).to(self._device) for x in inputs.split(self.unlabelled.chunk_size))
        chunks = (x if x.is_floating_point() else x.double() for x in chunks)
        return torch.cat([torch.linalg.vector_norm(x, dim=1).double() for x in chunks])  # in float64 tenfold the time

    @property
    def log_inputs(self) -> Float[Tensor, ""]:
        """ln ‖X‖_F over all samples."""
        return torch.linalg.vector_norm(self.input_norms).log()

    @property
    def cross_entropy(self) -> Float[Tensor, ""]:
        labels = self.labels
        return sample_losses(LOSSES["cross_entropy"], self.logits, labels).mean()

    @property
    def negative_entropy(self) -> Float[Tensor, ""]:
        self.require_classes()
        log_p = logits_of_classes(self.logits).log_softmax(-1)
        return (log_p.exp() * log_p).sum(-1).mean()

    # How it hangs on the inputs

    @quantity
    def jacobian_norms(self) -> dict[str, Float[Tensor, " samples"]]:
        """‖J(x)‖_F of the probabilities and of the logits, and of the root of the cross-entropy's Hessian."""
        all_three = ("probabilities", "logits", "cross_entropy")
        found = sensitivity.jacobian_norms(self.network, self._varied, of=all_three, **self._at_once)
        self.passes += 1 + self.unlabelled.classes
        return found

    @property
    def probability_jacobian_norms(self) -> Float[Tensor, " samples"]:
        self.require_classes()
        return self.jacobian_norms["probabilities"]

    @quantity
    def transitions(self) -> Estimate:
        """Changes of a linear piece along ellipses through three samples each."""
        count = -(-self.samples // _SAMPLES)
        chosen = torch.randint(self.samples, (3, count), generator=self._generator(), device=self._device)
        inputs = self._varied
        points = self._at_once.get("chunk_size", min(2048, 2**22 // inputs[0].numel()))
        at_once = max(1, points // _POINTS)
        ellipses = (
            sensitivity.ellipse(*inputs[part.to(inputs.device)], points=_POINTS, dim=1)
            for part in chosen.split(at_once, 1)
        )
        found = [sensitivity.transitions(self.network, paths, dim=1, **self._at_once) for paths in ellipses]
        changes = torch.cat(found).double().sum(1)
        self.passes += count * _POINTS / self.samples
        error = changes.std() / count**0.5 if count > 1 else self.number(math.inf)
        return Estimate(changes.mean(), error, 0.0)

    # For the kernels

    @property
    def _data(self) -> tuple[Network, Tensor, Tensor]:
        return self._moved, self.objective.inputs, _there(self._targets)

    @property
    def _classes(self) -> tuple[Network, Tensor, Tensor]:
        return self._moved, self.objective.inputs, self.labels

    @property
    def _options(self) -> dict:
        """Of a kernel of the loss."""
        return {"loss": self._loss, **self._at_once}

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
