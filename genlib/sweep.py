"""Many runs: a grid of configurations, every result kept, spread over the cores of a machine or of a cluster."""

import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from joblib import Memory, Parallel, delayed, parallel_config

from genlib import scale
from genlib.progress import progress

__all__ = ["converged", "run"]

Task = tuple[list[int], dict]  # its rows in the table of configurations, and the arguments of the function
SECONDS_TO_ANSWER = 10  # of a scheduler


def run(
    function: Callable,
    grid: pd.DataFrame | Mapping[str, Iterable],
    *,
    cache: str | Path,
    together: Sequence[str] = (),
    workers: int | None = None,
) -> pd.DataFrame:
    """One row a configuration: its setting on each axis, and what `function` found there.

    `grid` is a table of configurations or, for all combinations, the values on each axis. A task is one configuration,
    `function(width=64, seed=0) -> dict`; or all those that differ in the axes `together` alone, so that `fit_many` can
    train them in one stack: `function(width=64, seed=[0, 1]) -> ` one dict each. Each task has one thread.
    The result of a task is kept in the folder `cache` as soon as it is there: what is killed and run again computes
    only what was in flight. Kept results are taken up as long as the sources of genlib, of `function` itself, the
    task and GENLIB_DATA are the same; of what else `function` calls nothing is known. `workers` processes work side by
    side (default: all cores), or where GENLIB_DASK names a scheduler, all its workers; the table is the same. `.attrs`
    says where it comes from, `to_parquet` writes both.
    ValueError: an empty grid, a configuration that is there twice, results that don't match the configurations, a
    function that doesn't take the axes or gives no dict, a cluster's worker that runs several threads. ConnectionError:
    a scheduler that doesn't answer. What `function` raises comes with its configuration as a note.
    """
    table = _configurations(grid, together)
    tasks = _tasks(table, together)
    source = hashlib.sha256(_source(function)).hexdigest()[:12]
    try:
        inspect.signature(function).bind(**tasks[0][1])
    except TypeError as error:
        raise ValueError(
            f"function can't be called with the axes {', '.join(map(str, table))} of grid: {error}"
        ) from error
    knobs, sources = scale.knobs(), scale.sources_hash()
    code = f"{function.__module__}.{function.__qualname__} {source}, genlib {sources}, {scale.digits()}"
    store = Memory(cache, verbose=0).cache(_kept, ignore=["rows"])
    found = {i: rows for i, (_, task) in enumerate(tasks) if (rows := _recall(store, code, task)) is not None}
    missing = [i for i in range(len(tasks)) if i not in found]
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1, or None for all cores")
    with _machines(workers) as parallel, progress(total=len(missing), what=f"tasks ({len(found)} kept)") as line:
        results = parallel(delayed(_alone)(i, function, tasks[i], knobs, sources) for i in missing)
        for i, rows in results:
            found[i] = rows
            store(code, tasks[i][1], rows)
            line.update()
    index = [row for rows, _ in tasks for row in rows]
    measured = pd.DataFrame([row for i in range(len(tasks)) for row in found[i]], index=index).sort_index()
    whole = pd.concat([table, measured], axis=1)
    whole.attrs = scale.environment() | {"function": code}
    return whole


def converged(table: pd.DataFrame, *, by: Sequence[str] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The networks that met their stopping targets, and how many of how many those are, for each value of each axis.

    They are those whose column `converged` is true. Which networks are left out is seldom chance: look at the counts.
    """
    for name in ("converged", *by):
        if name not in table:
            raise ValueError(f"table has no column {name!r}; its columns are {', '.join(map(str, table.columns))}")
    met = table["converged"].astype(bool)
    groups = [
        ("all", "", met),
        *((axis, value, met[table[axis] == value]) for axis in by for value in table[axis].unique()),
    ]
    rows = [
        {"axis": axis, "value": value, "converged": part.sum(), "networks": len(part)} for axis, value, part in groups
    ]
    return table[met], pd.DataFrame(rows)


def _configurations(grid: pd.DataFrame | Mapping[str, Iterable], together: Sequence[str]) -> pd.DataFrame:
    if isinstance(grid, pd.DataFrame):
        table = grid.reset_index(drop=True)
    else:
        if not isinstance(grid, Mapping):
            raise ValueError(f"grid is a {type(grid).__name__}; give a table, or a dict of the values on each axis")
        axes = {axis: _values(axis, values) for axis, values in grid.items()}
        table = pd.DataFrame(itertools.product(*axes.values()), columns=list(axes))
    if table.empty:
        raise ValueError("grid holds no configuration; give every axis at least one value")
    if isinstance(together, str):
        raise ValueError(f"together is {together!r}; give a tuple of axes, ({together!r},)")
    if missing := [axis for axis in together if axis not in table]:
        raise ValueError(f"together names {', '.join(missing)}, which grid lacks; its axes are {', '.join(table)}")
    if twice := table.duplicated().sum():
        raise ValueError(f"grid holds {twice} configurations twice; runs that differ in chance alone differ in a seed")
    return table


def _values(axis: str, values: Iterable) -> list:
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"grid[{axis!r}] is {values!r}; give the values on an axis as a list, [{values!r}]")
    return list(values)


def _tasks(table: pd.DataFrame, together: Sequence[str]) -> list[Task]:
    """The same on any machine."""
    records = table.to_dict("records")  # in Python's own numbers: numpy's have other hashes
    apart = [axis for axis in table if axis not in together]
    members: dict[tuple, list[int]] = {}
    for row, record in enumerate(records):
        members.setdefault(tuple(record[axis] for axis in apart) if together else (row,), []).append(row)
    return [
        (
            rows,
            {axis: [records[i][axis] for i in rows] if axis in together else records[rows[0]][axis] for axis in table},
        )
        for rows in members.values()
    ]


def _alone(i: int, function: Callable, task: Task, knobs: dict[str, str], sources: str) -> tuple[int, list[dict]]:
    """One task on one thread, under the knobs of the process that asks for it."""
    if scale.sources_hash() != sources:
        raise RuntimeError("a worker has another genlib than this process; install the same one on both")
    threads, before = torch.get_num_threads(), scale.knobs()
    scale.turn(knobs | {"GENLIB_SWEEP": "1"})
    torch.set_num_threads(1)
    try:
        return i, _matched(function(**task[1]), task, function.__qualname__)
    except Exception as error:
        error.add_note(f"in the sweep's task {task[1]}")
        raise
    finally:
        torch.set_num_threads(threads)
        scale.turn(before)


def _matched(found, task: Task, name: str) -> list[dict]:
    rows, setting = task
    found = [found] if isinstance(found, Mapping) else found
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise ValueError(f"{name} gave {found!r}; have it return a dict, or for axes together a list of one dict each")
    found = list(found)
    if odd := [row for row in found if not isinstance(row, Mapping)]:
        raise ValueError(f"{name} gave {odd[0]!r} for a configuration; have it return a dict for each")
    found = [{key: _plain(value) for key, value in row.items()} for row in found]
    if len(found) != len(rows):
        raise ValueError(f"{name} gave {len(found)} results for {len(rows)} configurations; give one for each")
    if clash := sorted(set(setting).intersection(*found)):
        raise ValueError(f"{name} gives {', '.join(clash)}, which are axes; give the results other names")
    return found


def _plain(value):
    """A number in place of a tensor that holds one, for a table can't be written with tensors."""
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _kept(code: str, task: dict, rows: list[dict] | None) -> list[dict]:
    if rows is None:
        raise LookupError("the file of this result can't be read")
    return rows


def _recall(store, code: str, task: dict) -> list[dict] | None:
    try:
        return store(code, task, None) if store.check_call_in_cache(code, task, None) else None
    except LookupError:
        return None


def _source(function: Callable) -> bytes:
    try:
        return inspect.getsource(function).encode()
    except (OSError, TypeError) as error:
        raise ValueError(
            f"function {function!r} has no source to be found; define it with def, in a file or a cell"
        ) from error


@contextmanager
def _machines(workers: int | None) -> Iterator[Parallel]:
    """The cores of this machine, or the workers of the cluster that GENLIB_DASK names."""
    one_by_one = {"return_as": "generator_unordered", "batch_size": 1}
    if (address := scale.cluster()) is None:
        yield Parallel(n_jobs=scale.workers() if workers is None else workers, **one_by_one)
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("GENLIB_DASK needs Dask; install the extra [cluster]") from error
    try:
        client = Client(address, timeout=SECONDS_TO_ANSWER, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConnectionError(
            f"GENLIB_DASK is {address!r}, where no scheduler answers; start `dask scheduler` there, or unset it"
        ) from error
    if max(client.nthreads().values(), default=1) > 1:
        client.close()
        raise ValueError(
            "a worker of the cluster runs tasks in threads, which torch's random state and traces do not "
            "survive; start its workers with --nthreads 1, and one for each core with --nworkers"
        )
    with client, parallel_config(backend="dask", client=client):
        yield Parallel(n_jobs=-1, **one_by_one)
