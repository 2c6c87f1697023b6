"""The book's knobs: how large, from which seed, on which device. They are read from the environment here alone."""

import hashlib
import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch

__all__ = [
    "banner",
    "cache_directory",
    "cluster",
    "device",
    "digits",
    "dry_run",
    "environment",
    "in_sweep",
    "knobs",
    "on_colab",
    "recording",
    "scale",
    "seeds",
    "settings",
    "sources_hash",
    "turn",
    "workers",
]

SCALES = ("small", "gpu", "paper")
DIGITS = ("digits", "drawn_digits")
DRY_ROWS = {"train": 15, "test": 8}  # of every data set in a dry run
DRY_PIXELS = 75  # a side of images from files in a dry run, the fewest that Inception V3 takes
DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts a Google Drive


def scale() -> str:
    """The scale of this run, from `GENLIB_SCALE`: `small` (default), `gpu` or `paper`."""
    name = os.environ.get("GENLIB_SCALE") or "small"
    if name not in SCALES:
        raise ValueError(f"GENLIB_SCALE is {name!r}; set it to one of {', '.join(SCALES)}")
    return name


def seed_block() -> int:
    """The block of seeds of this run, from `GENLIB_SEED` (default 0)."""
    text = os.environ.get("GENLIB_SEED") or "0"
    try:
        block = int(text)
    except ValueError:
        raise ValueError(f"GENLIB_SEED is {text!r}; set it to a whole number, such as 1") from None
    if block < 0:
        raise ValueError(f"GENLIB_SEED is {block}; set it to a whole number that is not negative")
    return block


def seeds(count: int, *, block: int | None = None) -> list[int]:
    """`count` seeds, 1000·GENLIB_SEED + 0 … count-1: the blocks of two values of GENLIB_SEED never overlap.

    `block` stands for GENLIB_SEED. A dry run gets two at most.
    """
    if not 1 <= count <= 1000:
        raise ValueError(f"count is {count}; a block holds 1 to 1000 seeds")
    block = seed_block() if block is None else block
    return [1000 * block + i for i in range(min(count, 2) if dry_run() else count)]


def digits() -> str:
    """What `data.load` gives under the name `digits`, from `GENLIB_DATA`: `digits` (default) or `drawn_digits`.

    All seeds draw from the same 1797 images of `digits`; each gets fresh ones, of the same shape, of `drawn_digits`.
    """
    name = os.environ.get("GENLIB_DATA") or "digits"
    if name not in DIGITS:
        raise ValueError(f"GENLIB_DATA is {name!r}; set it to one of {', '.join(DIGITS)}")
    return name


def dry_run() -> bool:
    """Whether `GENLIB_DRY_RUN` asks for two training steps and a few rows of data, to try the code alone."""
    return _flag("GENLIB_DRY_RUN")


def recording() -> bool:
    """Whether `GENLIB_RECORD` asks to write the claims' records rather than to compare with them."""
    return _flag("GENLIB_RECORD")


def in_sweep() -> bool:
    """Whether this is a sweep's task, whose result is kept: `GENLIB_SWEEP`, which the sweep itself sets."""
    return _flag("GENLIB_SWEEP")


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def workers() -> int:
    """How many processes train small networks side by side: one a core without a GPU, one alone with it.

    One in a dry run, too, where starting a process takes longer than its work.
    """
    return 1 if dry_run() or device().type == "cuda" else os.cpu_count() or 1


def cluster() -> str | None:
    """The address of the Dask scheduler that sweeps are sent to, from `GENLIB_DASK`; None where they stay here."""
    return os.environ.get("GENLIB_DASK") or None


def knobs() -> dict[str, str]:
    """All the knobs of this run, for a process elsewhere to turn its own the same way."""
    return {name: value for name, value in os.environ.items() if name.startswith("GENLIB_")}


def turn(settings: dict[str, str]) -> None:
    """Turn the knobs of this process as those of another are, whose `knobs()` these are."""
    for name in knobs():
        del os.environ[name]
    os.environ.update(settings)


def cache_directory() -> Path:
    """Where finished work is kept: `GENLIB_CACHE` (default `.cache`), then a folder for these sources and this data.

    On Colab with Drive mounted the default is a folder on the Drive, which outlives the machine.
    """
    default = DRIVE / "genlib-cache" if on_colab() and DRIVE.is_dir() else Path(".cache")
    return Path(os.environ.get("GENLIB_CACHE") or default).expanduser().absolute() / f"{sources_hash()}-{digits()}"


def settings(*, small: dict, gpu: dict, paper: dict) -> SimpleNamespace:
    """The settings of this run's scale, out of three columns with the same rows.

    `.table` holds all three side by side, for the reader. A row missing in one column is a ValueError. A dry run gets
    the first three of a longer tuple of numbers.
    """
    columns = {"small": small, "gpu": gpu, "paper": paper}
    for name, column in columns.items():
        if missing := sorted(set().union(*columns.values()) - set(column)):
            raise ValueError(f"settings: {name} lacks {', '.join(missing)}; every scale names every setting")
    table = pd.DataFrame(columns, dtype=object)
    chosen = columns[scale()]
    if dry_run():
        chosen = {name: _beginning(value) for name, value in chosen.items()}
    return SimpleNamespace(**chosen, table=table)


def banner() -> str:
    """One line that says what this run is: scale, seeds, device, and whether it is a dry run."""
    where = device()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU, {os.cpu_count()} cores"
    dry = " · DRY RUN: two steps a training, nothing below means anything" if dry_run() else ""
    drawn = " · digits drawn anew for each seed" if digits() == "drawn_digits" else ""
    kept = ""
    if on_colab() and not DRIVE.is_dir():
        kept = " · finished work is kept on this machine only: mount Drive to keep it through a disconnect"
    return f"scale {scale()} · seeds {seeds(1)[0]}… · {name}{drawn}{kept}{dry}"


def environment() -> dict:
    """What a record says of the run that made it: scale, seeds, data, device, versions, genlib's sources."""
    return {
        "scale": scale(),
        "seed_block": seed_block(),
        "digits": digits(),
        "device": device().type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "genlib": sources_hash(),
    }


def on_colab() -> bool:
    """Whether this is a Colab runtime."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def _beginning(value):
    numbers = isinstance(value, tuple) and all(isinstance(each, int | float) for each in value)
    return value[:3] if numbers else value


def _flag(name: str) -> bool:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{name} is {value!r}; set it to 1 or 0")
    return value == "1"


def sources_hash(root: Path = Path(__file__).parent) -> str:
    """A name for the state of genlib's sources, those of the book left out: work of other sources is not taken up."""
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] != "book":
            for part in (path.relative_to(root).as_posix().encode(), path.read_bytes()):
                found.update(b"%d " % len(part) + part)
    return found.hexdigest()[:12]
