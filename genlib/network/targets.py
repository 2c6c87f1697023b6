"""Losses of torch and of one's own, and targets that are no classes, looked up by the number of the sample."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import vmap

from genlib.network.errors import out_of_memory
from genlib.network.losses import Loss, SampleLoss, sample_losses

__all__ = ["Compared", "sample_axes", "with_targets"]

_REGRESSION = {"mse": nn.MSELoss(), "l1": nn.L1Loss(), "huber": nn.HuberLoss()}
_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss)  # their targets are whole numbers, if not shares
_WHOLE = (*_OF_CLASSES, nn.MultiLabelMarginLoss)
_PIECE = 64  # samples
_ALIKE = 1e-3  # of the largest loss, what other sums in another order may change


@dataclass(frozen=True, eq=False)
class Compared:
    """A loss between outputs and targets [samples, …] as one of outputs and the numbers of the samples.

    Those are labels like any other: they are split, stacked and mapped over, and stand for targets of any kind.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    targets: Shaped[Tensor, "samples ..."]
    factors: Float[Tensor, " samples"] | None = None  # of each sample's loss, so that their mean is a weighted one

    @property
    def of_torch(self) -> bool:
        return isinstance(self.loss, _OfTorch)

    def __call__(self, outputs: Float[Tensor, "n outputs"], samples: Int[Tensor, " n"]) -> object:
        samples = samples.to(self.targets.device)
        targets = self.targets[samples].to(outputs.device)
        if targets.is_floating_point():
            targets = targets.to(outputs.dtype)
            # Of a single output [n, 1] less targets [n] torch would make [n, n].
            outputs = outputs.view_as(targets) if outputs.numel() == targets.numel() else outputs
        found = self.loss(outputs, targets)
        return found if self.factors is None else self.factors[samples].to(outputs) * found

    def of_part(self, samples: Int[Tensor, " n"]) -> "Compared":
        """The same of these samples alone, whose weighted mean is over their own weights."""
        if self.factors is None:
            return self
        try:
            own = self.loss.factors(self.targets[samples.to(self.targets.device)])
        except ValueError as error:
            raise ValueError("labels of a batch are all such as loss ignores; leave such samples out") from error
        return replace(self, factors=own[:1].expand_as(self.factors))

    def seen(self, outputs: Float[Tensor, "*models n outputs"], samples: Int[Tensor, "..."]) -> "Compared":
        """The same, once it is seen to be one number a sample, or the mean of these, which it then gives one by one."""
        outputs, samples = _finite_rows(outputs, samples)
        if self.of_torch:
            self.loss.require_fit(outputs, self.targets)
        each, found = self, _attempted(self, outputs, samples)
        if isinstance(found, Tensor) and found.dim() == 0:
            each = replace(self, loss=vmap(self._of_one))
            if _attempted(each, outputs, samples) is None:  # vmap doesn't follow a loss that looks at values
                each = replace(self, loss=self._one_by_one)
            self.require_mean(each, outputs, samples)
        together = sample_losses(each, outputs, samples)
        alone = torch.cat([sample_losses(each, z, s) for z, s in zip(outputs.split(1), samples.split(1), strict=True)])
        _require_alike(together, alone, alone.abs().amax())
        return each

    def require_mean(
        self, each: "Compared", outputs: Float[Tensor, "*models n outputs"], samples: Int[Tensor, "..."]
    ) -> None:
        """Refuse a loss of all that isn't the mean of the samples', or is another in pieces: a few may lack a class."""
        outputs, samples = _finite_rows(outputs, samples)
        losses = sample_losses(each, outputs, samples)
        if each is not self:
            _require_alike(self(outputs, samples), losses.mean(), losses.abs().mean())
        pieces = zip(outputs.split(_PIECE), samples.split(_PIECE), strict=True)
        _require_alike(losses, torch.cat([sample_losses(each, z, s) for z, s in pieces]), losses.abs().amax())

    def _of_one(self, outputs: Float[Tensor, "..."], target: Tensor) -> Tensor:
        return self.loss(outputs.unsqueeze(0), target.unsqueeze(0))

    def _one_by_one(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([self._of_one(z, t) for z, t in zip(outputs, targets, strict=True)])


@dataclass(frozen=True, eq=False)
class _OfTorch:
    """One of torch's own losses, of each sample, such that their mean is what it gives for all samples together."""

    module: nn.Module
    summed: bool  # over the numbers of a sample, in the place of a mean

    @classmethod
    def of(cls, module: nn.Module) -> "_OfTorch":
        if module.reduction not in ("mean", "none", "batchmean"):
            raise ValueError(
                f"loss is {module} with reduction={module.reduction!r}; the mean loss is measured: give 'mean'"
            )
        if len(inspect.signature(module.forward).parameters) != 2:
            raise ValueError(
                f"loss is {module}, which compares other than outputs and labels; give a function of these two"
            )
        each = copy.copy(module)
        each.reduction = "none"
        return cls(each, module.reduction == "batchmean")

    def factors(self, targets: Shaped[Tensor, "*models samples"]) -> Float[Tensor, " all"] | None:
        """Samples over the sum of their weights, of each network's own data; nothing where weights are all one."""
        module = self.module
        if not isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss) or targets.is_floating_point():
            return None
        counted = targets != module.ignore_index
        if ((targets < 0) & counted).any() or (module.weight is not None and (targets >= len(module.weight)).any()):
            raise ValueError("labels has values that are no class of loss, nor its ignore_index")
        weight = counted.double()
        if module.weight is not None:
            weight = weight * module.weight.to(targets.device)[targets.where(counted, 0)]
        total = weight.sum(-1, keepdim=True)
        if not (total > 0).all():
            raise ValueError(
                f"labels are all {module.ignore_index}, which loss ignores, or of weight 0; give at least one class"
            )
        return (targets.shape[-1] / total).expand_as(targets).flatten()

    def require_fit(self, outputs: Float[Tensor, "n outputs"], targets: Tensor) -> None:
        """Refuse targets of another shape than the outputs', which torch would broadcast, or of other classes."""
        weight = getattr(self.module, "weight", None)
        if weight is not None and weight.shape not in ((), (1,), outputs.shape[-1:], (1, outputs.shape[-1])):
            raise ValueError(
                f"loss has a weight of shape {tuple(weight.shape)}, and the network {outputs.shape[-1]} outputs; give "
                "a number for each output, and weights of samples in a function to one number a sample"
            )
        of_classes = isinstance(self.module, _OF_CLASSES) and not targets.is_floating_point()
        if of_classes and (targets.dim() > 1 or outputs.shape[-1] < 2 or (targets >= outputs.shape[-1]).any()):
            raise ValueError(
                f"labels has the shape {tuple(targets.shape)} and values up to {targets.max()}, and the network "
                f"{outputs.shape[-1]} outputs; give loss one class a sample, and the network an output a class"
            )
        if isinstance(self.module, nn.CrossEntropyLoss) and outputs.shape[-1] < 2:
            raise ValueError(
                f"loss is {self.module}, which is zero whatever the network's single output; give it one output a "
                "class, or nn.BCEWithLogitsLoss()"
            )
        if not of_classes and targets[0].numel() != outputs.shape[-1]:
            raise ValueError(
                f"labels has the shape {tuple(targets.shape)}, and the network {outputs.shape[-1]} outputs; give loss "
                "a target for each output, [samples, outputs]"
            )

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        module = self.module
        if not isinstance(module, _WHOLE):
            targets = targets.to(outputs.dtype).view_as(outputs)
        if tensors := [*module.buffers()]:  # class weights
            module = copy.deepcopy(module) if tensors[0].dtype != outputs.dtype else module
            module = module.to(outputs)
        found = module(outputs, targets)
        if found.dim() == 1:
            return found
        return found.flatten(1).sum(1) if self.summed else found.flatten(1).mean(1)


def with_targets(loss: Loss, inputs: Tensor, labels: Tensor, size: int | None) -> tuple[Loss | Compared, Tensor]:
    """The loss and its labels: those of names and classes as they are, others as the numbers of their samples."""
    named = isinstance(loss, str)
    if not isinstance(labels, Tensor) or (named and not (loss in _REGRESSION and labels.is_floating_point())):
        if loss in ("l1", "huber"):
            raise ValueError(f"labels are whole numbers, which {loss!r} doesn't compare; give labels.float()")
        return loss, labels
    loss = _REGRESSION[loss] if named else loss
    if not callable(loss):
        return loss, labels
    if isinstance(loss, type):
        raise ValueError(f"loss is the class {loss.__name__}; give an instance of it, {loss.__name__}()")
    if labels.layout is not torch.strided or not labels.dim():
        raise ValueError(f"labels has the shape {tuple(labels.shape)}; give one a sample, in a dense tensor")
    axes = sample_axes(inputs, labels, size)
    if inputs.shape[:axes] != labels.shape[:axes]:
        raise ValueError(
            f"labels has the shape {tuple(labels.shape)} and inputs {tuple(inputs.shape)}; give a row a sample"
        )
    if labels.is_floating_point() and not labels.isfinite().all():
        raise ValueError("labels has values that are not finite; leave these samples out")
    labels, factors = labels.detach(), None
    if type(loss).__module__ == nn.MSELoss.__module__ and hasattr(loss, "reduction"):
        if isinstance(loss, _OF_CLASSES) and not labels.is_floating_point():
            labels = labels.long()
        loss = _OfTorch.of(loss)
        factors = loss.factors(labels)
    targets = labels.flatten(0, axes - 1)
    numbers = torch.arange(len(targets), device=labels.device).view(labels.shape[:axes])
    return Compared(loss, targets, factors), numbers


def sample_axes(inputs: Tensor, labels: Tensor | None, size: int | None) -> int:
    """How many axes are in front of a sample: [models, samples] where each network of a stack has data of its own."""
    own = size is not None and labels is not None and labels.dim() > 1
    return 2 if own and labels.shape[:2] == inputs.shape[:2] and len(labels) == size else 1


def _finite_rows(
    outputs: Float[Tensor, "*models n outputs"], samples: Int[Tensor, "..."]
) -> tuple[Float[Tensor, "all outputs"], Int[Tensor, " all"]]:
    """Those of all models, without outputs that aren't finite: of these the loss itself says so."""
    samples = samples.expand(outputs.shape[:-1])
    finite = outputs.isfinite().all(-1)
    if not finite.any():
        raise ValueError(
            "network: its output on these data is not finite; check inputs, or measure it before it diverged"
        )
    return outputs[finite], samples[finite.to(samples.device)]


def _require_alike(given: Tensor, wanted: Tensor, size: Float[Tensor, ""]) -> None:
    if not ((given - wanted).abs() <= _ALIKE * size).all():
        raise ValueError(
            "loss of several samples is not the mean of theirs, or that of a sample hangs on those beside it; give "
            "a function to one number a sample, and class weights or ignore_index as those of nn.CrossEntropyLoss"
        )


def _attempted(loss: SampleLoss, outputs: Tensor, samples: Tensor) -> object:
    """What the loss gives, or nothing where it fails: that is said of its samples."""
    try:
        return loss(outputs, samples)
    except Exception as error:  # whatever a function of one's own raises
        if out_of_memory(error):
            raise
        return None
