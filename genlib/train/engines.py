"""What `fit` and `fit_many` train with: one network, or a stack of them behind the same few methods."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from genlib.data import Dataset
from genlib.network import Network, Params, copied, over_models, without_hooks
from genlib.network.chains import Chain, dense_chain, loss_and_gradient
from genlib.network.chunks import BLOCK_BYTES, samples_to_score
from genlib.network.errors import first_line
from genlib.network.losses import (
    MEANS,
    SampleLoss,
    per_sample_loss,
    sample_losses,
    zero_one_loss,
)
from genlib.network.precision import upcast
from genlib.optimizers import SAM, Ascent, LabelNoise, MeanSAM, OneSAM, kept, unchanged
from genlib.train.bases import Fused, build
from genlib.train.door import as_trained, few, put, rehearsed, require_samples_alone, tensors_of, training_copy
from genlib.train.plan import Job, Plan

__all__ = ["Single", "Stack", "scores"]


class Single:
    """One network. What it gives to be scored has a leading model axis of length one, as a stack's has."""

    def __init__(self, jobs: Sequence[Job], plan: Plan):
        (job,) = jobs
        self.plan, self.dataset = plan, job.dataset
        writes = _rehearsed(jobs, plan)
        self.module = training_copy(job.module, job.dataset.device)
        self.moving = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        own = callable(plan.optimizer) and not plan.recipe  # it may hook modules, as a SAM of one's own does
        self.forward = as_trained(self.module if own else without_hooks(self.module), writes=writes)
        params = list(self.moving.values())
        if own:
            self.optimizer = plan.optimizer(params)
        else:
            options = {"lr": job.lr, "momentum": plan.momentum, "weight_decay": job.weight_decay}
            self.optimizer = build(plan.base, params, **options)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.mean_sam = _mean_sam(self.module, plan, self.moving, job.dataset)
        self.chain = _chain(self.module, plan, self.moving, job.dataset)
        untouched = nullcontext if self.chain else lambda: kept(self.module)  # a chain holds nothing but parameters
        self.ascent = Ascent(plan.recipe, kept=untouched) if isinstance(plan.recipe, SAM) else None
        loss = per_sample_loss(plan.loss)
        self.mean_loss = MEANS.get(loss, lambda logits, labels: loss(logits, labels).mean())

    @property
    def fixed(self) -> Params:
        return dict(self.module.named_buffers())

    def minibatches(self, orders: list[Tensor] | None) -> Iterable[tuple[Tensor, Tensor]]:
        if orders is None:
            return [(self.dataset.inputs, self.dataset.labels)]
        return self.dataset.minibatches(orders[0], self.plan.batch_size or len(self.dataset))

    def in_order(self, *, test: bool) -> Iterator[tuple[Tensor, Tensor]]:
        size = samples_to_score(1, self.dataset.input_shape)
        every = torch.arange(len(self.dataset), device=self.dataset.device)
        batches = self.dataset.test_minibatches(size) if test else self.dataset.minibatches(every, size)
        return ((inputs[None], labels[None]) for inputs, labels in batches)

    def logits(self, inputs: Float[Tensor, "1 samples ..."]) -> Float[Tensor, "1 samples classes"]:
        return self.forward(inputs[0])[None]

    def step(self, inputs: Tensor, labels: Tensor, factor: float) -> Float[Tensor, ""]:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if self.plan.augment is not None:
            inputs = self.plan.augment(inputs.clone() if self.plan.batch_size is None else inputs)
        if self.plan.one_by_one and not self.plan.recipe:
            mean = self._own_step(inputs, labels)
        else:
            mean, grads = _gradient(self, inputs, labels)
            _update(self.optimizer, self.moving.values(), grads)
        if self.plan.project is not None:
            self.plan.project({name: p.detach().unsqueeze(0) for name, p in self.module.named_parameters()})
        return mean

    def _own_step(self, inputs: Tensor, labels: Tensor) -> Float[Tensor, ""]:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            mean = self.mean_loss(self.forward(inputs), labels)
            mean.backward()
            return mean

        return self.optimizer.step(closure).detach()

    def evaluate(self, inputs: Tensor, labels: Tensor) -> tuple[Float[Tensor, ""], Sequence[Tensor | None]]:
        if self.chain is not None:
            return as_trained(lambda x: loss_and_gradient(self.chain, self.moving, x, labels, self.plan.loss))(inputs)
        mean = self.mean_loss(self.forward(inputs), labels)
        return mean.detach(), torch.autograd.grad(mean, list(self.moving.values()), allow_unused=True)

    def train(self, training: bool) -> None:
        self.module.train(training)

    def keep(self, rows: list[int]) -> None:
        """One network leaves only when all is over."""

    def trained(self, row: int) -> nn.Module:
        return self.module

    def state(self) -> dict:
        return {"module": tensors_of(self.module), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict) -> None:
        put(self.module, state["module"])
        self.optimizer.load_state_dict(state["optimizer"])


class Stack:
    """Same-shaped networks, with a leading model axis on parameters, optimizer state and batches.

    torch's optimizers treat every element alike, so one serves the whole stack. Their updates are proportional to the
    learning rate, so where rates differ a step of rate 1 is taken and each network goes its share of the way.
    """

    def __init__(self, jobs: Sequence[Job], plan: Plan):
        if len({len(job.dataset) for job in jobs}) > 1:
            raise ValueError("datasets are of different sizes; stack each size by itself, or pass stacked=False")
        self.plan, self.jobs = plan, list(jobs)
        device = jobs[0].dataset.device
        writes = _rehearsed(jobs, plan)
        self.network = replace(
            Network.stack([copied(jobs[0].module), *(job.module for job in jobs[1:])]), writes_inputs=writes
        )
        self.network.module.to(device)
        trains = {name: p.requires_grad for name, p in jobs[0].module.named_parameters()}
        self.params = {name: p.to(device).requires_grad_(trains[name]) for name, p in self.network.params.items()}
        self.buffers = {name: b.to(device) for name, b in self.network.buffers.items()}
        self.per_model = {
            key: torch.tensor(values, device=device)
            for key in ("lr", "weight_decay")
            if len(set(values := [getattr(job, key) for job in jobs])) > 1
        }
        self.rate = 1.0 if "lr" in self.per_model else jobs[0].lr
        self.optimizer = build(
            plan.base,
            list(self.moving.values()),
            lr=self.rate,
            momentum=plan.momentum,
            weight_decay=0.0 if "weight_decay" in self.per_model else jobs[0].weight_decay,
        )
        self.network.module.train()
        self.mean_sam = _mean_sam(self.network.module, plan, self.moving, jobs[0].dataset, stacked=True)
        self.chain = _chain(self.network.module, plan, self.moving, jobs[0].dataset)
        self.ascent = self._ascent()
        self.loss, self.rows = per_sample_loss(plan.loss), None
        self._lay_out_data()

    @property
    def moving(self) -> Params:
        return {name: param for name, param in self.params.items() if param.requires_grad}

    @property
    def fixed(self) -> Params:
        return self.buffers | {name: param for name, param in self.params.items() if not param.requires_grad}

    def _ascent(self) -> Ascent | None:
        recipe = self.plan.recipe
        return (
            Ascent(recipe, stacked=True, kept=lambda: unchanged(self.buffers.values()))
            if isinstance(recipe, SAM)
            else None
        )

    def _lay_out_data(self) -> None:
        datasets = [job.dataset for job in self.jobs]
        self.inputs, self.labels = _stack([d.inputs for d in datasets]), _stack([d.labels for d in datasets])
        if self.plan.track_test:
            self.test_inputs = _stack([d.test_inputs for d in datasets])
            self.test_labels = _stack([d.test_labels for d in datasets])

    def minibatches(self, orders: list[Tensor] | None) -> Iterator[tuple[Tensor, Tensor]]:
        if orders is None:
            yield self.inputs, self.labels
            return
        self.rows = None  # of this epoch's batches: those of the networks still there, once one has left
        all_inputs, all_labels = self.inputs, self.labels
        order, row = torch.stack(orders), torch.arange(len(all_labels), device=all_labels.device)[:, None]
        size = self.plan.batch_size
        bytes_a_step = size * len(all_labels) * all_inputs[0, 0].nbytes
        block = size * max(1, BLOCK_BYTES // bytes_a_step)  # one gather serves many steps
        for index in order.split(block, dim=1):
            inputs, labels = all_inputs[row, index], all_labels[row, index]
            for batch in zip(inputs.split(size, dim=1), labels.split(size, dim=1), strict=True):
                yield batch if self.rows is None else tuple(part[self.rows] for part in batch)

    def in_order(self, *, test: bool) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, labels = (self.test_inputs, self.test_labels) if test else (self.inputs, self.labels)
        size = samples_to_score(len(labels), inputs.shape[2:])
        return zip(inputs.split(size, dim=1), labels.split(size, dim=1), strict=True)

    def logits(self, inputs: Float[Tensor, "models samples ..."]) -> Float[Tensor, "models samples classes"]:
        return self.network.apply(self.params, inputs, buffers=self.buffers, inputs_of_each=True)

    def step(self, inputs: Tensor, labels: Tensor, factor: float) -> Float[Tensor, " models"]:
        if self.plan.augment is not None:
            flat = inputs.flatten(0, 1)
            flat = self.plan.augment(flat.clone() if self.plan.batch_size is None else flat)
            inputs = flat.unflatten(0, inputs.shape[:2])
        params = list(self.moving.values())
        each, grads = _gradient(self, inputs, labels)
        self.optimizer.param_groups[0]["lr"] = self.rate * factor
        with torch.no_grad():
            if "weight_decay" in self.per_model:
                decay = self.per_model["weight_decay"]
                pairs = zip(params, grads, strict=True)
                grads = [None if grad is None else grad.addcmul(p, over_models(decay, p)) for p, grad in pairs]
            before = [param.clone() for param in params] if "lr" in self.per_model else []
            _update(self.optimizer, params, grads)
            for old, param in zip(before, params, strict=False):
                param.copy_(old.lerp_(param, over_models(self.per_model["lr"], param)))
            if self.plan.project is not None:
                self.plan.project({name: param.detach() for name, param in self.params.items()})
        return each

    def evaluate(self, inputs: Tensor, labels: Tensor) -> tuple[Float[Tensor, " models"], Sequence[Tensor | None]]:
        if self.chain is not None:
            return loss_and_gradient(self.chain, self.moving, inputs, labels, self.plan.loss)
        each = sample_losses(self.loss, self.logits(inputs), labels).mean(1)
        return each.detach(), torch.autograd.grad(each.sum(), list(self.moving.values()), allow_unused=True)

    def train(self, training: bool) -> None:
        self.network.module.train(training)
        self.network = replace(self.network)  # which forgets its dense steps: dropout is one of them in training alone

    def keep(self, rows: list[int]) -> None:
        self.jobs = [self.jobs[row] for row in rows]
        self.rows = rows if self.rows is None else [self.rows[row] for row in rows]
        state, kept = self.optimizer.state, {}
        for name, param in self.params.items():
            self.params[name] = param.detach()[rows].requires_grad_(param.requires_grad)
            moments = state.pop(param, {})
            if moments:
                kept[self.params[name]] = {k: v[rows] if v.dim() else v for k, v in moments.items()}
        state.update(kept)
        self.optimizer.param_groups[0]["params"] = list(self.moving.values())
        self.buffers = {name: b[rows] for name, b in self.buffers.items()}
        self.per_model = {key: value[rows] for key, value in self.per_model.items()}
        self.ascent = self._ascent()
        self._lay_out_data()

    def trained(self, row: int) -> nn.Module:
        module = copied(self.jobs[row].module).to(self.labels.device)
        own = {n: t.detach()[row].clone() for n, t in {**self.params, **self.buffers}.items()}
        if tensors_of(put(module, own)).keys() - own.keys():  # what hooks compute from the weights
            with torch.no_grad():
                module.eval()(self.inputs[row, :1].clone())
        return module

    def state(self) -> dict:
        tensors = {n: t.detach() for n, t in {**self.params, **self.buffers}.items()}
        return {"tensors": tensors, "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict) -> None:
        for name, tensor in {**self.params, **self.buffers}.items():
            tensor.data.copy_(state["tensors"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def _gradient(engine: Single | Stack, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The loss, one a model of a stack, and the gradient that the recipe steps with."""
    recipe = engine.plan.recipe
    if isinstance(recipe, OneSAM):
        try:
            fixed = {} if engine.chain else engine.fixed
            loss, grads = engine.mean_sam(engine.moving, fixed, inputs, labels)
        except RuntimeError as error:  # vmap's, in words of its own
            raise ValueError(
                f"network: its samples can't pass each by itself ({first_line(error)}); train by SAM, or "
                "write its forward pass so that torch.func.vmap takes it"
            ) from error
        return loss, list(grads.values())
    if isinstance(recipe, SAM):
        return engine.ascent.gradient(lambda: engine.evaluate(inputs, labels), list(engine.moving.values()))
    return engine.evaluate(inputs, labels)


def _update(optimizer: Fused | torch.optim.Optimizer, params: Iterable[Tensor], grads: Sequence[Tensor | None]) -> None:
    if isinstance(optimizer, Fused):
        optimizer.update(grads)
        return
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()


def _rehearsed(jobs: Sequence[Job], plan: Plan) -> bool:
    """Whether the first network writes into its inputs; refused where it can't be trained on all these data."""
    datasets = list({id(job.dataset): job.dataset for job in jobs}.values())
    labels = [labels for d in datasets for labels in (d.labels, d.test_labels if plan.track_test else d.labels[:0])]
    if isinstance(plan.recipe, LabelNoise):
        labels += [d.labels.new_tensor([len(d.classes) - 1]) for d in datasets]
    inputs, _ = few(datasets[0])
    writes = rehearsed(jobs[0].module, inputs, torch.cat(labels), per_sample_loss(plan.loss))
    if isinstance(plan.recipe, OneSAM):
        require_samples_alone(jobs[0].module, inputs)
    return writes


def _mean_sam(
    module: nn.Module, plan: Plan, moving: Params, dataset: Dataset, *, stacked: bool = False
) -> MeanSAM | None:
    if not isinstance(plan.recipe, OneSAM):
        return None
    shape = dataset.input_shape
    return MeanSAM.of(module, plan.recipe.rho, plan.loss, moving=moving, input_shape=shape, stacked=stacked)


def _chain(module: nn.Module, plan: Plan, moving: Params, dataset: Dataset) -> Chain | None:
    """The dense layers that pass forward and back without autograd, where nothing else looks on."""
    plain = all(p.dtype in (torch.float32, torch.float64) and not p._backward_hooks for p in moving.values())
    return dense_chain(module, moving, dataset.input_shape)[0] if plain and not callable(plan.loss) else None


@torch.no_grad()
def scores(
    logits: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], loss: SampleLoss
) -> Float[Tensor, "2 models"]:
    """Mean loss and accuracy of each network over all batches."""
    total, samples = 0.0, 0
    for inputs, labels in batches:
        z = upcast(logits(inputs))
        parts = [sample_losses(loss, z, labels), 1 - sample_losses(zero_one_loss, z, labels)]
        total, samples = total + torch.stack([part.double().sum(1) for part in parts]), samples + labels.shape[1]
    return total / samples


def _stack(tensors: list[Tensor]) -> Tensor:
    """One tensor with a leading model axis; what all networks share takes no memory of its own."""
    if all(tensor is tensors[0] for tensor in tensors):
        return tensors[0].expand(len(tensors), *tensors[0].shape)
    return torch.stack(tensors)
