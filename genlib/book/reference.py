"""The reference of genlib's public names, in Markdown: signatures as they are written, and their docstrings."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from types import FunctionType

__all__ = ["reference"]

BETWEEN = "# ----"


def reference(module_name: str) -> str:
    """What the module says of itself, then a section for each of its public functions and classes."""
    module = importlib.import_module(f"genlib.{module_name}")
    members = {name: getattr(module, name) for name in module.__all__}
    others = [name for name, member in members.items() if not isinstance(member, FunctionType | type)]
    members = {name: member for name, member in members.items() if name not in others}
    signatures = _formatted([_signature(member) for member in members.values()])
    parts = [_prose(module.__doc__)]
    for (name, member), signature in zip(members.items(), signatures, strict=True):
        parts += [f"### `{module_name}.{name}`", f"```python\n{signature}\n```", _prose(inspect.getdoc(member))]
        parts += [_method(name, *of) for of in vars(member).items()] if isinstance(member, type) else []
    if others:
        parts.append(f"Besides: {', '.join(f'`{module_name}.{name}`' for name in others)}.")
    return "\n\n".join(part for part in parts if part)


def _method(owner: str, name: str, value: object) -> str:
    """A public method or property, if it says what it is."""
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if name.startswith("_") or not isinstance(function, FunctionType) or not function.__doc__:
        return ""
    shown = f"`{owner}.{name}`" if isinstance(value, property) else f"`{owner}.{name}{_arguments(function)}`"
    return f"{shown}\n: {_prose(inspect.getdoc(function)).replace(chr(10), chr(10) + '  ')}"


def _arguments(function: FunctionType) -> str:
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    return f"({', '.join(names)})"


def _signature(member: FunctionType | type) -> str:
    """What stands in the source before the docstring; of a class its fields, too."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(member)))
    node, lines = ast.parse(source).body[0], source.splitlines()
    shown = lines[node.lineno - 1 : node.body[0].lineno - 1]
    if isinstance(member, type):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and not item.target.id.startswith("_")]
        start = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        shown += [line for item in fields for line in lines[item.lineno - 1 : item.end_lineno]]
        shown += [line for item in start for line in lines[item.lineno - 1 : item.body[0].lineno - 1]]
    return "\n".join(shown) + (" ..." if shown[-1].endswith(":") else "")


def _formatted(signatures: list[str]) -> list[str]:
    """Laid out for the width of a page, all in one call."""
    layout = [sys.executable, "-m", "ruff", "format", "--line-length", "76", "--stdin-filename", "signatures.py", "-"]
    code = f"\n{BETWEEN}\n".join(signatures)
    laid_out = subprocess.run(layout, input=code, text=True, capture_output=True, check=True).stdout
    return [part.strip("\n") for part in laid_out.split(f"{BETWEEN}\n")]


def _prose(docstring: str) -> str:
    """A docstring as Markdown: what stands in backticks stays as it is, elsewhere no sign has a meaning."""
    pieces = re.split(r"(`[^`]*`)", inspect.cleandoc(docstring))
    pieces[::2] = [re.sub(r"([*_<>\[\]|$#{}\\~])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)
