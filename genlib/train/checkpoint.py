"""What a training has come to, kept in a file so that a killed one goes on."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from genlib import scale
from genlib.network import copied
from genlib.train.door import put, tensors_of
from genlib.train.engines import Single, Stack
from genlib.train.plan import Job, Plan

__all__ = ["Checkpoint", "Fate", "State"]

SECONDS_BETWEEN_SAVES = 10.0


@dataclass
class Fate:
    """What became of one network so far; `module` is the trained one once it has ended."""

    history: list[dict[str, float | int]] = field(default_factory=list)
    converged: bool = False
    steps: int = 0
    seconds: float = 0.0
    diverged_at: int | None = None
    module: nn.Module | None = None


@dataclass
class State:
    """A training at one step: the engine, what became of each network, and the generators that shuffle."""

    engine: Single | Stack
    fates: list[Fate]
    generators: list[torch.Generator]
    step: int = 0
    recent: list[Tensor] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self):
        self.active = list(range(len(self.fates)))

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a kill included."""
        return time.perf_counter() - self.started


class Checkpoint:
    """The file of one training, in the folder `plan.checkpoint`, named after all that decides its result."""

    def __init__(self, jobs: Sequence[Job], plan: Plan):
        self.path, self.jobs = None, jobs
        if plan.checkpoint is not None:
            self.path = Path(plan.checkpoint) / f"training-{_fingerprint(jobs, plan)}.pt"
        self.saved = time.perf_counter()

    def save(self, state: State) -> None:
        """Write the state at the end of an epoch, at most every 10 seconds and at the end."""
        if self.path is None or (state.active and time.perf_counter() - self.saved < SECONDS_BETWEEN_SAVES):
            return
        content = {
            "fates": [
                vars(fate) | {"module": None if fate.module is None else tensors_of(fate.module)}
                for fate in state.fates
            ],
            "engine": state.engine.state() if state.active else None,
            "generators": [generator.get_state() for generator in state.generators],
            "random": [torch.get_rng_state(), *_cuda_states(state)],
            "active": state.active,
            "step": state.step,
            "recent": state.recent,
            "seconds": state.seconds,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        torch.save(content, partial)
        os.replace(partial, self.path)  # whole or not at all
        self.saved = time.perf_counter()

    def load(self, state: State) -> None:
        """Put the training where the file left it; do nothing where there is none."""
        if self.path is None or not self.path.exists():
            return
        device = state.generators[0].device
        try:
            content = torch.load(self.path, map_location=device, weights_only=True)
        except Exception as error:
            raise ValueError(f"checkpoint: {self.path} can't be read ({error}); delete it to train anew") from error
        for job, fate in zip(self.jobs, content["fates"], strict=True):
            if fate["module"] is not None:
                fate["module"] = put(copied(job.module).to(device), fate["module"])
        state.fates = [Fate(**fate) for fate in content["fates"]]
        if 0 < len(content["active"]) < len(state.active):
            state.engine.keep(content["active"])
        state.active, state.step, state.recent = content["active"], content["step"], content["recent"]
        if state.active:
            state.engine.restore(content["engine"])
        for generator, saved in zip(state.generators, content["generators"], strict=True):
            generator.set_state(saved.cpu())
        torch.set_rng_state(content["random"][0].cpu())
        if device.type == "cuda":
            torch.cuda.set_rng_state(content["random"][1].cpu(), device)
        state.started = time.perf_counter() - content["seconds"]


def _cuda_states(state: State) -> list[Tensor]:
    device = state.generators[0].device
    return [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []


def _fingerprint(jobs: Sequence[Job], plan: Plan) -> str:
    digest = hashlib.sha256(scale.sources_hash().encode())
    digest.update(f"{plan.momentum} {plan.batch_size} {plan.track_test} {scale.dry_run()}".encode())
    for function in (plan.optimizer, plan.loss, plan.schedule, plan.augment, plan.project):
        digest.update((_code(function) if callable(function) else str(function)).encode())
    for job in jobs:
        digest.update(f"{job.lr} {job.weight_decay} {job.stop} {job.seed} {job.module}".encode())
        digest.update(f"{job.dataset!r} {job.dataset.device.type}".encode())
        tensors = [*tensors_of(job.module).values(), job.dataset.labels, job.dataset.test_labels]
        if not job.streamed:
            tensors += [_sample(job.dataset.inputs), _sample(job.dataset.test_inputs)]
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


def _sample(inputs: Tensor) -> Tensor:
    """A thousand rows spread over the data: enough to tell two data sets apart, cheap for large ones."""
    return inputs[:: max(1, len(inputs) // 1000)]


def _code(function: Callable) -> str:
    """What a function does, as far as its bytes and captured values tell; an object without code is named."""
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function)
    captured = [cell.cell_contents for cell in function.__closure__ or ()]
    constants = [constant for constant in code.co_consts if not hasattr(constant, "co_code")]
    return (
        f"{function.__qualname__} {code.co_code.hex()} {constants} {code.co_names} {captured} {function.__defaults__}"
    )
