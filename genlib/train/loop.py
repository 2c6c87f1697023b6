"""Training: `fit` one network, `fit_many` a stack of them at once. Data lives on the device as tensors."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Int64, Integer
from joblib import Parallel, delayed
from joblib.externals.loky.backend.reduction import dumps
from torch import Tensor, nn

from genlib import scale
from genlib.data import Dataset
from genlib.network import Params, copied, require_one_shape
from genlib.network.chunks import samples_to_score
from genlib.network.losses import Loss, per_sample_loss
from genlib.optimizers import LabelNoise
from genlib.progress import progress
from genlib.train.checkpoint import Checkpoint, Fate, State
from genlib.train.door import (
    SAMPLES,
    as_trained,
    cast,
    in_precision,
    require_finite_data,
    require_labels,
    require_logits,
    require_module,
    sparing,
    trainable,
    undisturbed,
)
from genlib.train.engines import Single, Stack, scores
from genlib.train.plan import Job, Optimizer, Plan, Stop
from genlib.train.runs import Run, Runs
from genlib.train.stacking import stack_fails

__all__ = ["fit", "fit_many", "loss_and_accuracy"]


@undisturbed()
def fit(
    module: nn.Module,
    dataset: Dataset,
    *,
    lr: float,
    stop: Stop,
    optimizer: Optimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int | None = None,
    loss: Loss = "cross_entropy",
    schedule: Callable[[float], float] | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    project: Callable[[Params], None] | None = None,
    track_test: bool = False,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> Run:
    """Train a copy of `module` and say how it went; the module itself is left as it was.

    `optimizer` is sgd, adam, rmsprop, lbfgs, one of genlib.optimizers' recipes (SAM, OneSAM, LabelNoise) or a function
    from parameters to a torch optimizer; `momentum` is Adam's β₁. `batch_size` None is the full batch. `loss` is
    cross_entropy, mse (to one-hot targets) or a function from logits and labels to one loss a sample. `schedule` maps
    the epoch, a float, to a factor on lr; `augment` a batch of inputs to another; `project`, called after each step,
    brings the parameters, a dict of tensors with a leading axis of models, back into a set, in place. `checkpoint` is a
    folder: a training that was killed goes on from its last saved epoch, bit for bit, and one that had ended is read
    from there. Cost a step: 3 forward passes over the batch; a check: 1 over the data.
    The module comes out of DataParallel and torch.compile; hooks, parametrizations and frozen weights are trained with
    as they are. The data are cast to the precision of the weights, autocast around the call is off; data that the
    forward pass or `augment` writes into stay as they were.
    Raises FloatingPointError, with the step, when the loss is no longer finite. ValueError: a network that can't be
    trained as a copy on these data, found by passing a few samples before the first step; data that aren't finite.
    """
    plan = Plan(optimizer, momentum, batch_size, loss, schedule, augment, project, track_test, checkpoint)
    module = trainable(module)
    run = _train([Job(module, in_precision(dataset, module), lr, weight_decay, stop, seed)], plan, Single)[0]
    if run.diverged_at is not None:
        raise FloatingPointError(f"the loss is not finite at step {run.diverged_at}; lower lr ({lr}) or check the data")
    return run


@undisturbed()
def fit_many(
    modules: Sequence[nn.Module],
    datasets: Dataset | Sequence[Dataset],
    *,
    lr: float | Sequence[float],
    stop: Stop | Sequence[Stop],
    optimizer: Optimizer = "sgd",
    momentum: float = 0.9,
    weight_decay: float | Sequence[float] = 0.0,
    batch_size: int | None = None,
    loss: Loss = "cross_entropy",
    schedule: Callable[[float], float] | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    project: Callable[[Params], None] | None = None,
    track_test: bool = False,
    checkpoint: str | Path | None = None,
    seed: int | Sequence[int] | None = None,
    stacked: bool | None = None,
    workers: int = 1,
) -> Runs:
    """Train copies of many same-shaped modules at once, each as `fit` would with its seed.

    `datasets`, `lr`, `weight_decay`, `stop` and `seed` (default 0, 1, …) are one for all or one a module; the data sets
    of a stack are of one size. A network that stops or diverges leaves the stack: look at `converged`, `diverged_at`.
    Where a loop is faster (convolutions and wide layers on a CPU) or needed (L-BFGS, an optimizer of your own, streamed
    data) it loops; `stacked` overrules the choice. The loop, or the stack in equal parts, is spread over that many
    `workers` (processes of one thread each). The rest is as in `fit`.
    Before a stack is trained, a few samples show that its outputs, gradients and buffers are those of its networks, but
    for dense ones, where that is sure; else it loops, and with `stacked` True: ValueError.
    """
    modules = [trainable(module, f"modules[{i}]") for i, module in enumerate(modules)]
    require_one_shape(modules)
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    plan = Plan(optimizer, momentum, batch_size, loss, schedule, augment, project, track_test, checkpoint)
    columns = {"datasets": datasets, "lr": lr, "weight_decay": weight_decay, "stop": stop, "seed": seed}
    columns["seed"] = range(len(modules)) if seed is None else seed
    each = [_one_each(len(modules), *column) for column in columns.items()]
    fitting = {}  # each once, for what networks share takes no memory of its own
    for i, (dataset, module) in enumerate(zip(each[0], modules, strict=True)):
        key = id(dataset), tuple(p.dtype for p in module.parameters())
        each[0][i] = fitting[key] if key in fitting else fitting.setdefault(key, in_precision(dataset, module))
    jobs = [Job(*row) for row in zip(modules, *each, strict=True)]
    must_loop = plan.one_by_one or any(job.streamed for job in jobs)
    if stacked and must_loop:
        raise ValueError("stacked is True, but L-BFGS, optimizers of your own and streamed data train one by one")
    loop = must_loop or stacked is False or (stacked is None and _loop_is_faster(jobs[0]))
    if not loop and (why := stack_fails(modules, each[0])) is not None:
        if stacked:
            raise ValueError(f"stacked is True, but {why}; leave stacked out to train the networks one by one")
        loop = True
    if workers > 1:
        _require_sendable(modules[0])
    parts = len(jobs) if loop else min(workers, len(jobs))
    ends = [part * len(jobs) // parts for part in range(parts + 1)]
    tasks = (delayed(_train)(jobs[a:b], plan, Single if loop else Stack) for a, b in itertools.pairwise(ends))
    found = Parallel(n_jobs=workers, return_as="generator")(tasks)
    return Runs(tuple(run for part in progress(found, total=parts, what="networks") for run in part))


@undisturbed()
@torch.no_grad()
def loss_and_accuracy(
    module: nn.Module, inputs: Tensor, labels: Integer[Tensor, " samples"], *, loss: Loss = "cross_entropy"
) -> tuple[float, float]:
    """Mean loss and accuracy of a module in evaluation mode, the mode put back.

    Cost: 1 forward pass over the data, and one over 8 samples. Inputs are cast to the precision of the weights, and
    stay as they were where the forward pass works in place.
    ValueError: no data, labels that aren't one whole number a sample among the classes, a forward pass that fails or
    gives no logits, a loss that isn't finite.
    """
    require_module(module)
    sample_loss = per_sample_loss(loss)
    labels = _whole_labels(inputs, labels)
    inputs = cast(inputs, module)
    modes = {part: part.training for part in module.modules()}
    forward = as_trained(sparing(module))

    def logits(x: Tensor) -> Tensor:
        outputs = forward(x[0])
        require_logits(outputs, len(x[0]))
        return outputs[None]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        size = samples_to_score(1, inputs.shape[1:])
        for x, y in zip(inputs.split(size), labels.split(size), strict=True):
            yield x[None], y[None]

    module.eval()
    try:
        require_labels(logits(inputs[None, :SAMPLES]).shape[-1], labels, sample_loss)
        mean_loss, accuracy = scores(logits, batches(), sample_loss).flatten().tolist()
    finally:
        for part, training in modes.items():
            part.training = training
    if not math.isfinite(mean_loss):
        what = "" if not inputs.is_floating_point() or inputs.isfinite().all() else ", and inputs aren't either"
        raise ValueError(
            f"network: its loss on these data is not finite{what}; check inputs, or measure it before it diverged"
        )
    return mean_loss, accuracy


def _train(jobs: Sequence[Job], plan: Plan, engine_type: type[Single] | type[Stack]) -> list[Run]:
    """The one training loop: each network trains until its targets, its cap, or a loss that isn't finite."""
    device, samples = jobs[0].dataset.device, len(jobs[0].dataset)
    if plan.batch_size is not None and plan.batch_size > samples and not scale.dry_run():
        raise ValueError(
            f"batch_size is {plan.batch_size}, but dataset has {samples} training samples; None is the full batch"
        )
    steps_an_epoch = math.ceil(samples / (plan.batch_size or samples))
    caps = [job.last_step(steps_an_epoch) for job in jobs]
    if len({job.stop.every for job in jobs}) > 1:
        raise ValueError("stop.every differs between the networks of a stack; look at all of them after the same steps")
    every = jobs[0].stop.every or max(steps_an_epoch, 10)
    checkpoint = Checkpoint(jobs, plan)
    with (
        undisturbed(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        progress(what="steps") as line,
    ):
        torch.manual_seed(jobs[0].seed)  # for dropout and augmentation; shuffling has generators of its own
        state = State(engine_type(jobs, plan), [Fate() for _ in jobs], [_generator(job) for job in jobs])
        checkpoint.load(state)
        next_cap = min((caps[i] for i in state.active), default=0)
        state.engine.train(True)
        while state.active:
            orders = None
            if plan.batch_size is not None or jobs[0].streamed:
                orders = [torch.randperm(samples, generator=state.generators[i], device=device) for i in state.active]
            for inputs, labels in state.engine.minibatches(orders):
                if isinstance(plan.recipe, LabelNoise):
                    labels = _noisy(plan.recipe, labels, jobs[0].dataset, [state.generators[i] for i in state.active])
                factor = 1.0 if plan.schedule is None else plan.schedule(state.step / steps_an_epoch)
                state.recent.append(state.engine.step(inputs, labels, factor))
                state.step += 1
                line.update()
                if state.step % every == 0 or state.step >= next_cap:
                    _check(state, jobs, plan, caps, state.step / steps_an_epoch)
                    if not state.active:
                        break
                    next_cap = min(caps[i] for i in state.active)
                    state.engine.train(True)
            checkpoint.save(state)
    return [_run(job, fate) for job, fate in zip(jobs, state.fates, strict=True)]


def _check(state: State, jobs: Sequence[Job], plan: Plan, caps: Sequence[float | int], epoch: float) -> None:
    """Measure the networks that are training, and end those that are done."""
    engine, loss = state.engine, per_sample_loss(plan.loss)
    engine.train(False)
    columns = [*scores(engine.logits, engine.in_order(test=False), loss)]
    if plan.track_test:
        columns += [*scores(engine.logits, engine.in_order(test=True), loss)]
    bad = ~torch.stack(state.recent).view(len(state.recent), -1).isfinite()
    columns.append(torch.where(bad.any(0), bad.int().argmax(0), -1))
    stay, names = [], ("loss", "accuracy", "test_loss", "test_accuracy")[: len(columns) - 1]
    for row, (*values, first_bad) in enumerate(torch.stack(columns, 1).tolist()):  # the one host read of a check
        index = state.active[row]
        fate = state.fates[index]
        fate.steps, fate.seconds = state.step, state.seconds
        fate.history.append(
            {"step": state.step, "epoch": epoch, "seconds": fate.seconds, **dict(zip(names, values, strict=True))}
        )
        if first_bad >= 0 or not math.isfinite(values[0]):
            require_finite_data(jobs[index].dataset)
            fate.diverged_at = state.step - len(state.recent) + max(int(first_bad), 0) + 1
        else:
            if not all(map(math.isfinite, values)):
                require_finite_data(jobs[index].dataset, test=True)
            fate.converged = jobs[index].converged(*values[:2])
        if fate.diverged_at or state.step >= caps[index] or (fate.converged and jobs[index].has_target):
            fate.module = engine.trained(row)
        else:
            stay.append(row)
    state.recent = []
    if stay and len(stay) < len(state.active):
        engine.keep(stay)
    state.active = [state.active[row] for row in stay]


def _run(job: Job, fate: Fate) -> Run:
    for p in fate.module.parameters():
        p.grad = None
    history = pd.DataFrame(fate.history)
    ended = fate.converged, fate.steps, fate.seconds, fate.diverged_at
    return Run(fate.module.train(False), copied(job.module).train(False), history, *ended)


def _whole_labels(inputs: Tensor, labels: Tensor) -> Int64[Tensor, " samples"]:
    for name, tensor in (("inputs", inputs), ("labels", labels)):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}; give a tensor, as by torch.as_tensor")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.dim() != 1 or not whole:
        raise ValueError(
            f"labels have the shape {tuple(labels.shape)} and {labels.dtype}; give one whole number a sample, "
            "from 0 to classes - 1, as by labels.squeeze(1) or labels.argmax(1) and .long()"
        )
    if inputs.dim() == 0 or len(inputs) == 0 or len(inputs) != len(labels):
        samples = len(inputs) if inputs.dim() else "no"
        raise ValueError(f"inputs and labels hold {samples} and {len(labels)} samples; give one label an input")
    return labels.long()


def _require_sendable(module: nn.Module) -> None:
    try:
        if any(p._backward_hooks for p in module.parameters()):
            raise TypeError("hooks of weights stay behind")
        dumps(module)
    except Exception as error:  # whatever a part of it raises, as parametrized ones do
        raise ValueError(
            f"workers is above 1, but the networks can't be sent to other processes ({type(error).__name__}: {error}); "
            "train with workers=1"
        ) from error


def _one_each(count: int, name: str, value) -> list:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name} holds {len(values)} values for {count} modules; give one for all or one a module")
    return values


def _noisy(recipe: LabelNoise, labels: Tensor, dataset: Dataset, generators: list[torch.Generator]) -> Tensor:
    """Labels drawn anew, [n], or [models, n] with each network's own generator."""
    rows = labels.view(len(generators), -1)
    drawn = [
        recipe.noisy(row, len(dataset.classes), generator=generator)
        for row, generator in zip(rows, generators, strict=True)
    ]
    return torch.stack(drawn).view_as(labels)


def _loop_is_faster(job: Job) -> bool:
    """Convolutions and wide layers fill a CPU by themselves; a GPU gains from every stack that fits."""
    if job.dataset.device.type != "cpu":
        return False
    wide = max((p.numel() for p in job.module.parameters()), default=0) > 2**14
    return wide or any(isinstance(part, nn.modules.conv._ConvNd) for part in job.module.modules())


def _generator(job: Job) -> torch.Generator:
    return torch.Generator(job.dataset.device).manual_seed(job.seed)
