"""The mean loss as a function of the parameters, and the look at network and data before they are measured."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from genlib.network.chunks import samples_at_once, side_by_side
from genlib.network.door import admitted, spread
from genlib.network.functional import Network, Params
from genlib.network.losses import Loss, SampleLoss, per_sample_loss, require_binary, sample_losses
from genlib.network.precision import upcast, upcast_network
from genlib.network.targets import Compared, with_targets

__all__ = [
    "Objective",
    "batches",
    "measurable",
    "parameter_norm",
    "rademacher",
    "random_params",
    "require_classes",
    "require_finite",
    "require_labels",
    "seeded_generator",
    "stand_ins",
    "start_of",
    "with_slope",
]

_SEEN = 64  # samples on which a loss of one's own is seen to be the mean of theirs
_NOISE = int.from_bytes(b"noise")  # no seed of a network: from equal seeds the noise could be its initial weights


@dataclass(frozen=True)
class Objective:
    """The mean loss over the data as a function of the parameters: one value, or one a model of a stack.

    `labels` [samples]; a stack may have [models, samples], and then inputs [models, samples, …] of each too.
    `chunk_size` is the number of samples that pass at a time; where it holds several draws' samples, they share a pass.
    `outputs` is the number of the network's outputs, one for each class, or one that tells two apart by its sign.
    """

    network: Network
    inputs: Tensor
    labels: Int[Tensor, "..."]
    loss: SampleLoss
    chunk_size: int
    outputs: int

    @classmethod
    def of(
        cls,
        network: nn.Module | Network,
        inputs: Tensor,
        labels: Shaped[Tensor, "..."],
        loss: Loss = "cross_entropy",
        chunk_size: int | None = None,
    ) -> "Objective":
        """The objective, after one look at the data; half precision is upcast.

        `loss`: a name of LOSSES, of labels [samples] that are classes; `mse`, `l1` and `huber` of targets in floats,
        [samples] or [samples, outputs]; a loss of torch, as nn.CrossEntropyLoss(weight, label_smoothing=0.1), whose
        mean over all samples it is then, ignored ones left out; or a function from outputs [n, outputs] and labels to
        one number a sample or to their mean, for which one forward pass over all data is seen beforehand. Outputs have
        the shape of targets in floats with as many numbers.
        ValueError: BatchNorm or dropout in training mode, no data, labels that don't match the inputs or the classes,
        an unknown loss, or one that is no mean over the samples.
        """
        network = Network.of(network)
        loss, labels = with_targets(loss, inputs, labels, network.size)
        given = loss
        network, inputs = measurable(network, inputs, labels, chunk_size)
        if not network.params:
            raise ValueError("network has no parameters; there is nothing to move")
        loss, labels = per_sample_loss(loss, error=True), labels.long()
        axis, of_each = labels.dim() - 1, labels.dim() == 2
        with torch.no_grad():
            few = spread(inputs, axis, _SEEN) if isinstance(loss, Compared) else inputs.narrow(axis, 0, 1)
            logits = network.apply(network.params, few, inputs_of_each=of_each)
            if isinstance(loss, Compared):
                loss, outputs = loss.seen(logits, spread(labels, axis, _SEEN)), logits.shape[-1]
            else:
                outputs = require_classes(logits, labels, network.size)
        labels = labels.clone() if labels.is_inference() else labels
        chunk_size = chunk_size or samples_at_once(network, inputs, labels)
        objective = cls(network, inputs, labels, loss, chunk_size, outputs)
        if isinstance(given, Compared) and not given.of_torch:
            given.require_mean(loss, objective.logits(), labels)
        return objective

    @property
    def samples(self) -> int:
        return self.labels.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the network is; the data may lie elsewhere, and are brought chunk by chunk."""
        return next(iter(self.network.params.values())).device

    @property
    def classes(self) -> int:
        return max(2, self.outputs)

    @property
    def of_each(self) -> bool:
        """Whether each network of a stack has its own data."""
        return self.labels.dim() == 2

    @property
    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, labels in batches(self.inputs, self.labels, self.chunk_size):
            yield inputs.to(self.device), labels.to(self.device)

    @property
    def each(self) -> "Iterator[Objective]":
        """The objective of each network of a stack, or the only one."""
        for i, one in enumerate(self.network.each):
            data = (self.inputs[i], self.labels[i]) if self.of_each else (self.inputs, self.labels)
            yield replace(self, network=one, inputs=data[0], labels=data[1])

    @property
    def in_float64(self) -> "Objective":
        """The same, computed in float64."""
        params, buffers = (
            {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
            for tensors in (self.network.params, self.network.buffers)
        )
        inputs = self.inputs.double() if self.inputs.is_floating_point() else self.inputs
        return replace(self, network=replace(self.network, params=params, buffers=buffers), inputs=inputs)

    @property
    def together(self) -> int:
        """How many weights share a pass: of small networks what one chunk holds; a stack's models lie so already.

        One, where a forward pass may look at values.
        """
        if self.network.size is not None or self.network.graph is None:
            return 1
        together = max(1, min(self.chunk_size // self.samples, side_by_side(self.network.params)))
        return together if together == 1 or self._stackable else 1

    @property
    def _stackable(self) -> bool:
        """Whether torch's vmap follows the forward pass; not through recurrent layers, for one, nor all steps in place.

        Tried but where all of it are layers that are known.
        """
        network, passed = self.network, self.network.passed
        if "vmap" not in passed and "no vmap" not in passed:
            works = True
            if any(layer.kind == "unknown" or not isinstance(layer.operation, nn.Module) for layer in network.layers):
                params, buffers = (
                    {n: torch.stack([t, t]) for n, t in ts.items()} for ts in (network.params, network.buffers)
                )
                try:
                    with torch.no_grad():
                        replace(network, size=2).apply(params, self.inputs[:1], buffers=buffers)
                except ValueError:
                    works = False
            passed.add("vmap" if works else "no vmap")
        return "vmap" in passed

    @torch.no_grad()
    def logits(self) -> Float[Tensor, "*models samples outputs"]:
        """Those of all samples at the network's own weights. One forward pass."""
        network = self.network
        found = (network.apply(network.params, x, inputs_of_each=self.of_each) for x, _ in self.batches)
        return torch.cat([*found], -2)

    def losses(self, logits: Float[Tensor, "*models n classes"], labels: Tensor) -> Float[Tensor, "*models n"]:
        """One loss a sample."""
        return sample_losses(self.loss, logits, labels)

    def __call__(self, params: Params, draws: int | None = None) -> Float[Tensor, "*models"]:
        """The mean loss at these parameters, or at `draws` of them that lie along a leading axis. One forward pass."""
        network, buffers = self.network, self.network.buffers
        if draws is not None:
            network = replace(network, size=draws)
            buffers = {name: buffer.expand(draws, *buffer.shape) for name, buffer in buffers.items()}
        sums = [
            self.losses(network.apply(params, inputs, buffers=buffers, inputs_of_each=self.of_each), labels).sum(-1)
            for inputs, labels in self.batches
        ]
        return sum(sums) / self.samples

    def gradient(self, params: Params) -> tuple[Float[Tensor, "*models"], Params]:
        """The mean loss and its gradient; of a stack each model's own. Three forward passes."""
        total = 0.0
        with torch.enable_grad():
            leaves = {name: param.detach().requires_grad_() for name, param in params.items()}
            for inputs, labels in self.batches:
                logits = self.network.apply(leaves, inputs, inputs_of_each=self.of_each)
                loss = with_slope(self.losses(logits, labels).sum(-1) / self.samples)
                loss.sum().backward(inputs=list(leaves.values()))  # adds up in place, in the leaves' own gradients
                total = total + loss.detach()
        return total, {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}

    @torch.no_grad()
    def at_rest(self) -> Float[Tensor, "*models"]:
        """The mean loss at the network's own weights, refused where it isn't finite. One forward pass."""
        return self.finite(self(self.network.params))

    def finite(self, loss: Float[Tensor, "*models"]) -> Float[Tensor, "*models"]:
        """The loss at the network's own weights, refused where it isn't finite. One host read."""
        return require_finite(loss, "loss")


def with_slope(loss: Tensor) -> Tensor:
    """The loss itself, refused where it doesn't hang on the weights by a graph."""
    if not loss.requires_grad:
        raise ValueError(
            "network: its loss has no derivative in its weights; take no_grad, detach and rounding out of its forward"
        )
    return loss


def measurable(
    network: nn.Module | Network, inputs: Tensor, labels: Tensor, chunk_size: int | None
) -> tuple[Network, Tensor]:
    """The network and its inputs in the precision of the measurement; refused where the data don't fit."""
    network = upcast_network(Network.of(network))
    network.require_eval()
    for name, tensor in (("inputs", inputs), ("labels", labels)):
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            kind = f"sparse, {tensor.layout}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise ValueError(f"{name} is {kind}; give a dense tensor, as by torch.as_tensor or to_dense")
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        mend = "labels.argmax(1) of one-hot rows" if labels.dim() == 2 else "labels.long() of whole ones"
        raise ValueError(
            f"labels are {labels.dtype}; they must be whole numbers from 0 to classes - 1, as {mend}, or loss one that "
            "compares them, as 'mse'"
        )
    shared, of_each = labels.dim() == 1, labels.dim() == 2 and labels.shape[0] == network.size
    if not (shared or of_each) or inputs.shape[: labels.dim()] != labels.shape:
        raise ValueError(
            f"labels has the shape {tuple(labels.shape)} and inputs {tuple(inputs.shape)}; give one label a sample, "
            "[samples], as labels.argmax(1) of one-hot rows, or [models, samples] for a stack whose networks have "
            "their own data"
        )
    if labels.numel() == 0:
        raise ValueError("inputs is empty; give at least one sample")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    dtype = next((p.dtype for p in network.params.values() if p.is_floating_point()), upcast(inputs).dtype)
    inputs = inputs.detach().clone() if inputs.is_inference() else inputs.detach()
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    return admitted(network, inputs, labels.dim() - 1), inputs


def stand_ins(inputs: Tensor) -> Int[Tensor, " samples"]:
    """Labels for what hangs on none: 0 for each sample."""
    return torch.zeros(inputs.shape[:1], dtype=torch.long, device=inputs.device)


def require_classes(logits: Tensor, labels: Tensor, size: int | None) -> int:
    """The number of outputs, once the labels are seen to be among their classes: two, if it is one. One host read."""
    if logits.dim() != (2 if size is None else 3) or not logits.shape[-1]:
        raise ValueError(f"network: its output has the shape {tuple(logits.shape)}; it must be [samples, classes]")
    require_labels(labels, logits.shape[-1])
    return logits.shape[-1]


def require_labels(labels: Tensor, outputs: int) -> None:
    """Refuse labels that are no classes of a network of so many outputs. One host read."""
    if outputs == 1:
        require_binary(labels)
    elif ((labels < 0) | (labels >= outputs)).any():
        raise ValueError(
            f"labels has values outside 0 … {outputs - 1}, the classes of the network; number the classes from 0, or "
            "give a loss that ignores some, as nn.CrossEntropyLoss(ignore_index=-100)"
        )


def require_finite(values: Tensor, what: str) -> Tensor:
    if not values.isfinite().all():
        raise ValueError(
            f"network: its {what} on these data is not finite; check inputs, or measure it before it diverged"
        )
    return values


def batches(inputs: Tensor, labels: Tensor, chunk_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The data, `chunk_size` samples at a time."""
    samples = labels.dim() - 1
    return zip(inputs.split(chunk_size, samples), labels.split(chunk_size, samples), strict=True)


def parameter_norm(tensors: Iterable[Tensor], size: int | None) -> Float[Tensor, "*models"]:
    """The Euclidean norm over all tensors, one a model of a stack."""
    norms = [torch.linalg.vector_norm(w.flatten(int(size is not None)), dim=-1) for w in tensors]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


def rademacher(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Signs at random, of the precision and on the device of `like`."""
    bits = torch.randint(2, shape, generator=generator, device=like.device, dtype=torch.int8)
    return bits.to(like.dtype).mul_(2).sub_(1)


def seeded_generator(generator: torch.Generator | None, device: torch.device, seed: int = 0) -> torch.Generator:
    if generator is None:
        return torch.Generator(device).manual_seed(_NOISE + seed)
    if generator.device.type != device.type:
        raise ValueError(
            f"generator is on {generator.device} but inputs on {device}; make it there: Generator({device})"
        )
    return generator


def start_of(initial: nn.Module | Network, network: Network) -> Params:
    """The weights of `initial`, of the same names and shapes as the network's, and in their precision."""
    params = Network.of(initial, "initial").params
    if {n: p.shape for n, p in params.items()} != {n: p.shape for n, p in network.params.items()}:
        raise ValueError("initial has other parameters than network; give the network's own start, a stack for a stack")
    return {name: param.to(network.params[name]) for name, param in params.items()}


def random_params(
    params: Params,
    size: int | None,
    generator: torch.Generator,
    lead: tuple[int, ...] = (),
    *,
    sample: Callable[..., Tensor] = torch.randn,
) -> Params:
    """A random number for each weight, with `lead` axes in front; the models of a stack share theirs."""
    return {
        name: sample((*lead, *w.shape[size is not None :]), generator=generator, device=w.device, dtype=w.dtype)
        for name, w in params.items()
    }
