"""Populations of networks too many to train in a chapter: a committed record of five disjoint blocks of seeds."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from scipy import stats

from genlib import scale
from genlib.progress import progress

__all__ = ["beyond_spread", "population", "recorded"]

BLOCKS = 5
_CONFIDENCE = 0.9999  # of a prediction interval: a chapter looks at some twenty values in each of its runs


def population(
    name: str, train: Callable[[list[int]], pd.DataFrame], *, count: int = 5, folder: str | Path = "records"
) -> pd.DataFrame:
    """The population for this run's `count` seeds: out of the record for blocks 0 to 4, else trained here.

    `train(seeds)` returns one row a network, with its seed in the column `seed`. The record is
    `<folder>/<name>.<scale>.parquet`; where there is none, in a dry run and on drawn digits, all is trained. With
    GENLIB_RECORD=1 five blocks are trained and written with their provenance (`.attrs`), unless these very sources of
    genlib have written that record. ValueError: a record that lacks one of the seeds, a training that returns other
    seeds than asked.
    """
    writing = scale.recording() and not scale.dry_run() and scale.digits() == "digits"
    if writing and not _up_to_date(name, count, Path(folder)):
        _write(name, train, count, Path(folder))
    kept, seeds = recorded(name, folder=folder), scale.seeds(count)
    if scale.dry_run() or kept is None or scale.seed_block() >= BLOCKS:
        return _trained(train, seeds)
    if missing := sorted(set(seeds) - set(kept["seed"])):
        raise ValueError(f"{name}: the record lacks the seeds {missing}; write it anew with `make record`")
    return kept[kept["seed"].isin(seeds)].reset_index(drop=True)


def recorded(name: str, *, folder: str | Path = "records") -> pd.DataFrame | None:
    """All blocks of the committed record, provenance in `.attrs`; None without one at this scale or for fresh data."""
    path = _path(name, Path(folder))
    return pd.read_parquet(path) if path.exists() and scale.digits() == "digits" else None


def beyond_spread(
    found: pd.DataFrame, record: pd.DataFrame, *, by: Sequence[str], columns: Sequence[str]
) -> pd.DataFrame:
    """The rows of `found` that the record's seeds make implausible, with the interval each should have been in.

    For each of `columns`, among the record's rows that agree in `by`: mean ± t s √(1 + 1/n), a 99.99 % interval for one
    more value. ValueError: a row whose configuration the record holds fewer than three times.
    """
    rows = []
    for _, row in found.iterrows():
        same = record[(record[list(by)] == row[list(by)]).all(axis=1)]
        n = len(same)
        if n < 3:
            raise ValueError(f"found: the record has {n} networks with {row[list(by)].to_dict()}; give at least 3")
        factor = stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1) * (1 + 1 / n) ** 0.5
        for column in columns:
            mean, half = same[column].mean(), factor * same[column].std()
            if not abs(row[column] - mean) <= half:
                rows.append({**row[list(by)], "column": column, "found": row[column], "of the record": (mean, half)})
    return pd.DataFrame(rows, columns=[*by, "column", "found", "of the record"])


def _up_to_date(name: str, count: int, folder: Path) -> bool:
    kept = recorded(name, folder=folder)
    return kept is not None and (kept.attrs.get("genlib"), kept.attrs.get("seeds_a_block")) == (
        scale.sources_hash(),
        count,
    )


def _write(name: str, train: Callable[[list[int]], pd.DataFrame], count: int, folder: Path) -> None:
    blocks = [
        _trained(train, scale.seeds(count, block=block)) for block in progress(range(BLOCKS), what=f"record {name}")
    ]
    frame = pd.concat(blocks, ignore_index=True)
    frame.attrs = scale.environment() | {"blocks": BLOCKS, "seeds_a_block": count}
    path = _path(name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path, index=False)


def _trained(train: Callable[[list[int]], pd.DataFrame], seeds: list[int]) -> pd.DataFrame:
    frame = train(seeds)
    if set(frame["seed"]) != set(seeds):
        raise ValueError(f"train: asked for the seeds {seeds}, returned {sorted(set(frame['seed']))}")
    return frame


def _path(name: str, folder: Path) -> Path:
    return folder / f"{name}.{scale.scale()}.parquet"
