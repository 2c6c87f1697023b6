"""Where the logits are in what a forward pass returns."""

from collections.abc import Mapping

from torch import Tensor

__all__ = ["entry_of_logits", "logits_of"]


def entry_of_logits(output: object) -> object:
    """What a dict or an object holds as `logits`, or the first of several entries; else the output itself."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    first = output[0] if isinstance(output, tuple | list) and output else output
    return getattr(output, "logits", first)


def logits_of(output: object, samples: int) -> Tensor:
    """The logits [samples, outputs] in what a forward pass returned on so many samples.

    Of several entries without a name the first, unless another has fewer numbers a sample: it may be logits behind
    features. The axis of one output, or of one sample, may have been squeezed out. No such tensor: ValueError.
    """
    found = entry_of_logits(output)
    if isinstance(found, Tensor) and found.dim() < 2 and (samples == 1 or found.shape == (samples,)):
        found = found.reshape(samples, -1)
    if not isinstance(found, Tensor) or (isinstance(output, tuple | list) and not _first(found, output, samples)):
        raise ValueError(
            f"network: its output is a {_described(output)}; wrap it in a module that returns the logits alone, or let "
            "it return a dict that has them as logits"
        )
    if not found.is_floating_point():
        raise ValueError(f"network: its output is of {found.dtype}; let it return logits, before argmax or rounding")
    return found


def _first(found: Tensor, entries: tuple | list, samples: int) -> bool:
    """Whether the first entry is a row of numbers a sample, and none of the others a shorter one."""
    if hasattr(entries, "logits"):  # by their name
        return True
    rows = [e for e in entries if isinstance(e, Tensor) and e.dim() in (1, 2) and len(e) == samples]
    return found.dim() == 2 and all(row.shape[1:].numel() >= found.shape[1] for row in rows if row.is_floating_point())


def _described(output: object) -> str:
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"{kind} of {', '.join(map(str, output)) or 'nothing'}"
    if not isinstance(output, tuple | list):
        return kind
    entries = (str(tuple(e.shape)) if isinstance(e, Tensor) else type(e).__name__ for e in output)
    return f"{kind} of {', '.join(entries) or 'nothing'}"
