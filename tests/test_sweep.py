"""Sweeps: one table on any machine, and nothing finished is lost when a process is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tasks import clashing, counted, drawn, failing, fatal_once, knobs, listed, measured, nothing, short, trained

from genlib import scale, sweep

GRID = {"width": [4, 8], "lr": [0.1, 0.2], "seed": [0, 1, 2]}


def test_one_row_a_configuration_in_the_order_of_the_grid(tmp_path):
    table = sweep.run(drawn, GRID, cache=tmp_path, workers=1)
    assert list(table) == ["width", "lr", "seed", "value", "rate"]
    assert [tuple(row) for row in table[["width", "lr", "seed"]].to_numpy()] == [
        (width, lr, seed) for width in (4, 8) for lr in (0.1, 0.2) for seed in (0, 1, 2)
    ]
    expected = pd.DataFrame([drawn(**row) for row in table[["width", "lr", "seed"]].to_dict("records")])
    pd.testing.assert_frame_equal(table[["value", "rate"]], expected)
    assert table.attrs["genlib"] == scale.sources_hash()
    table.to_parquet(tmp_path / "table.parquet")
    assert pd.read_parquet(tmp_path / "table.parquet").attrs == table.attrs


def test_one_process_many_and_stacks_of_any_grid_give_the_same_table(tmp_path):
    tables = [
        sweep.run(trained, GRID, cache=tmp_path / str(workers), together=["lr", "seed"], workers=workers)
        for workers in (1, 2)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    shuffled = tables[0][list(GRID)].sample(frac=1, random_state=0)
    again = sweep.run(trained, shuffled, cache=tmp_path / "shuffled", together=["lr", "seed"], workers=1)
    assert again[list(GRID)].equals(shuffled.reset_index(drop=True))
    both = tables[0].merge(again, on=list(GRID))
    assert both.loss_x.to_numpy() == pytest.approx(both.loss_y.to_numpy(), rel=1e-5)


def test_a_second_sweep_computes_only_what_is_new(tmp_path):
    grid = {"folder": [str(tmp_path)], "task": [0, 1]}
    assert not sweep.run(counted, grid, cache=tmp_path, workers=1)["again"].any()
    grid["task"] = [0, 1, 2]
    assert not sweep.run(counted, grid, cache=tmp_path, workers=1)["again"].any()


def test_results_of_other_sources_are_not_taken_up(tmp_path, monkeypatch):
    grid = {"folder": [str(tmp_path)], "task": [0]}
    sweep.run(counted, grid, cache=tmp_path, workers=1)
    monkeypatch.setattr(scale, "sources_hash", lambda: "others")
    assert sweep.run(counted, grid, cache=tmp_path, workers=1)["again"].all()
    monkeypatch.setattr(sweep, "_source", lambda function: b"def counted(folder, task): another")
    (tmp_path / "task-0").unlink()
    assert not sweep.run(counted, grid, cache=tmp_path, workers=1)["again"].any()


def test_results_on_other_digits_are_not_taken_up(tmp_path, monkeypatch):
    grid = {"folder": [str(tmp_path)], "task": [0]}
    sweep.run(counted, grid, cache=tmp_path, workers=1)
    monkeypatch.setenv("GENLIB_DATA", "drawn_digits")
    assert sweep.run(counted, grid, cache=tmp_path, workers=1)["again"].all()
    (tmp_path / "task-0").unlink()
    assert sweep.run(counted, grid, cache=tmp_path, workers=1)["again"].all()  # what is kept


def test_a_result_whose_file_is_broken_is_computed_again(tmp_path):
    sweep.run(drawn, GRID, cache=tmp_path, workers=1)
    (first, *_) = tmp_path.rglob("output.pkl")
    first.write_bytes(first.read_bytes()[:5])
    assert len(sweep.run(drawn, GRID, cache=tmp_path, workers=1)) == 12


KILLED_AND_RUN_AGAIN = """
import os, pathlib, sys
from genlib import sweep
from tasks import fatal_once

def again():
    grid = {"folder": [sys.argv[1]], "task": range(6)}
    return sweep.run(fatal_once, grid, cache=sys.argv[1], workers=1)["again"]

if (child := os.fork()) == 0:
    again()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(*sorted(path.name for path in pathlib.Path(sys.argv[1]).glob("task-*")))
print(*again())
"""


def test_a_killed_sweep_loses_only_what_was_in_flight(tmp_path):
    """Its third task kills it, without a chance to clean up; the tasks run in the process of the sweep itself."""
    places = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
    command = [sys.executable, "-c", KILLED_AND_RUN_AGAIN, str(tmp_path)]
    run = subprocess.run(command, env=places, check=True, capture_output=True, text=True)
    killed, marks, second = run.stdout.splitlines()
    assert int(killed) == -signal.SIGKILL
    assert marks.split() == ["task-0", "task-1", "task-2"]
    # Had it run again, a finished task would have found its own mark.
    assert second.split() == ["False", "False", "True", "False", "False", "False"]


@pytest.fixture(scope="module")
def scheduler():
    """Two workers on this machine."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", host="127.0.0.1"
    ) as local:
        yield local.scheduler_address


@pytest.fixture
def cluster(scheduler, monkeypatch):
    monkeypatch.setenv("GENLIB_DASK", scheduler)


def test_two_workers_of_a_cluster_give_the_same_table_bit_for_bit(tmp_path, cluster, monkeypatch):
    there = sweep.run(trained, GRID, cache=tmp_path / "there", together=["lr", "seed"])
    monkeypatch.delenv("GENLIB_DASK")
    here = sweep.run(trained, GRID, cache=tmp_path / "here", together=["lr", "seed"], workers=2)
    pd.testing.assert_frame_equal(there, here, check_exact=True)


def test_a_worker_that_is_killed_loses_nothing(tmp_path, cluster):
    grid = {"folder": [str(tmp_path)], "task": range(8)}
    table = sweep.run(fatal_once, grid, cache=tmp_path / "cache")
    assert table["task"].tolist() == list(range(8))
    assert table["again"][2], "the task that killed its worker ran a second time"


def test_workers_have_one_thread_and_the_knobs_of_the_caller(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("GENLIB_DRY_RUN", "1")
    table = sweep.run(knobs, {"task": [0, 1]}, cache=tmp_path)
    assert table["dry"].all() and (table["threads"] == 1).all()


def test_workers_that_share_a_process_are_refused(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0", host="127.0.0.1", protocol="tcp://"
    ) as local:
        monkeypatch.setenv("GENLIB_DASK", local.scheduler_address)
        with pytest.raises(ValueError, match="--nthreads 1"):
            sweep.run(drawn, GRID, cache=tmp_path)


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setenv("GENLIB_DASK", "tcp://127.0.0.1:1")
    monkeypatch.setattr(sweep, "SECONDS_TO_ANSWER", 0.5)
    with pytest.raises(ConnectionError, match=r"GENLIB_DASK is 'tcp://127\.0\.0\.1:1', where no scheduler answers"):
        sweep.run(drawn, GRID, cache=tmp_path)


@pytest.mark.parametrize(
    ("function", "grid", "together", "error", "message"),
    [
        (drawn, {"width": []}, (), ValueError, "grid holds no configuration"),
        (drawn, {"width": [1]}, ["seed"], ValueError, "together names seed, which grid lacks"),
        (drawn, {"width": [1, 1], "lr": [1], "seed": [0]}, (), ValueError, "1 configurations twice"),
        (clashing, {"width": [1]}, (), ValueError, "clashing gives width, which are axes"),
        (short, {"width": [1], "seed": [0, 1]}, ["seed"], ValueError, "short gave 1 results for 2 configurations"),
        (print, {"width": [1]}, (), ValueError, "has no source"),
        (failing, {"width": [1]}, (), ZeroDivisionError, "no such network"),
        (nothing, {"width": [1]}, (), ValueError, "nothing gave None; have it return a dict"),
        (listed, {"width": [1]}, (), ValueError, "listed gave 1 for a configuration; have it return a dict"),
        (measured, {"depth": [1]}, (), ValueError, "function can't be called with the axes depth of grid"),
        (measured, {"width": 1}, (), ValueError, r"grid\['width'\] is 1; give the values on an axis as a list"),
        (measured, {"width": "12"}, (), ValueError, r"grid\['width'\] is '12'"),
        (measured, [1, 2], (), ValueError, "grid is a list; give a table, or a dict"),
        (measured, {"width": [1]}, "width", ValueError, "together is 'width'; give a tuple of axes"),
    ],
)
def test_bad_input_is_named(tmp_path, function, grid, together, error, message, unchecked):
    with pytest.raises(error, match=message):
        sweep.run(function, grid, cache=tmp_path, together=together, workers=1)


def test_workers_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="workers is 0; it must be at least 1"):
        sweep.run(measured, {"width": [1]}, cache=tmp_path, workers=0)


def test_tensors_of_one_number_are_numbers_in_the_table(tmp_path):
    table = sweep.run(measured, {"width": torch.arange(1, 4)}, cache=tmp_path, workers=1)
    assert table.to_dict("list") == {"width": [1, 2, 3], "norm": [2.0, 4.0, 6.0], "width_seen": [1, 2, 3]}
    assert [kind.kind for kind in table.dtypes] == ["i", "f", "i"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_says_in_which_task(tmp_path, workers):
    with pytest.raises(ZeroDivisionError) as caught:
        sweep.run(failing, {"width": [7]}, cache=tmp_path, workers=workers)
    assert "in the sweep's task {'width': 7}" in caught.value.__notes__


def test_unconverged_networks_are_left_out_and_counted():
    table = pd.DataFrame({"width": [1, 1, 2, 2], "converged": [True, False, True, True]})
    kept, counts = sweep.converged(table, by=["width"])
    assert kept.index.tolist() == [0, 2, 3]
    assert counts.to_dict("list") == {
        "axis": ["all", "width", "width"],
        "value": ["", 1, 2],
        "converged": [3, 1, 2],
        "networks": [4, 2, 2],
    }
    with pytest.raises(ValueError, match="table has no column 'depth'"):
        sweep.converged(table, by=["depth"])
