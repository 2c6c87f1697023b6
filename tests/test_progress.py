"""The progress line: where somebody looks on, and nowhere else."""

import contextlib
import io
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genlib.measures import evaluate
from genlib.progress import progress


class Stream(io.StringIO):
    terminal = False

    def isatty(self):
        return self.terminal


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    for name in ("COLAB_RELEASE_TAG", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)


def written(call, *, terminal=False):
    """What the call writes to stdout."""
    stream = Stream()
    stream.terminal = terminal
    with contextlib.redirect_stdout(stream):
        call()
    return stream.getvalue()


def line(**options):
    return written(lambda: list(progress(range(3), what="things")), **options)


def test_it_is_shown_on_a_terminal_alone():
    assert line() == ""
    assert "things" in (shown := line(terminal=True)) and shown.endswith("\r")  # it has vanished


def in_kernel(monkeypatch, kind="ZMQInteractiveShell"):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: type(kind, (), {})()))


def test_a_kernel_shows_it_where_a_server_has_opened_the_notebook(monkeypatch):
    in_kernel(monkeypatch)
    assert line() == ""  # run by nbclient
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/notebook.ipynb")
    assert "things" in line()


@pytest.mark.parametrize("shell", ["TerminalInteractiveShell", "NoneType"])
def test_a_process_that_a_kernel_started_does_not(shell, monkeypatch):
    in_kernel(monkeypatch, shell)
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/notebook.ipynb")
    assert line() == ""


def test_a_table_names_the_row_that_is_measured():
    data, names = (torch.randn(9, 3), torch.zeros(9).long()), ["l2", "cross_entropy"]
    shown = written(lambda: evaluate(nn.Linear(3, 2), data, names=names), terminal=True)
    assert "measures" in shown and shown.index("l2") < shown.index("cross_entropy")
