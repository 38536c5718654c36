"""README.md and docs/: code that compiles and fits what it calls, commands that parse, links that lead somewhere.

The code is a user's, with that user's application in it, so it is not run here: it is read. What each page shows was
run by hand, and the examples, which the pages point to, are run by ``tests/examples``.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import registry_drain
from registry_drain.cli.main import COMMANDS
from registry_drain.errors import ConfigurationError

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
_FENCE = re.compile(r"^(?P<margin> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=margin)```$", re.DOTALL | re.MULTILINE)
_OUR_IMPORT = re.compile(r"^ *from registry_drain[\w.]* import (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(?P<title>.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A block of code, and the line of the page at which it begins."""

    line: int
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return a page's blocks of code, in which an ellipsis is one however it is written."""
    return [
        Block(page.count("\n", 0, found.start()) + 2, found["language"], textwrap.dedent(found["text"]))
        for found in _FENCE.finditer(page.replace("…", "..."))
    ]


# --- Python -----------------------------------------------------------------------------------------------------------


def parsed(text: str) -> ast.Module:
    """Compile a fragment, in which ``await`` may stand outside of functions, and return its tree."""
    compile(text, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return ast.parse(text)


def imported(tree: ast.AST) -> dict[str, object]:
    """Import what a fragment imports, and return it by the name under which the fragment knows it."""
    found: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            module = importlib.import_module(node.module)
            found |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    return found


def is_ours(value: object) -> bool:
    """Return whether this package defines ``value``."""
    return str(getattr(value, "__module__", "")).partition(".")[0] == "registry_drain"


def misfits(tree: ast.AST, known: dict[str, object]) -> Iterator[str]:
    """Yield the calls of what is ours that its signature refuses."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and is_ours(known.get(node.func.id))):
            continue
        called = known[node.func.id]
        assert callable(called)
        is_abridged = any(isinstance(each, ast.Constant) and each.value is ... for each in node.args)
        signature = inspect.signature(called)
        names = {keyword.arg: None for keyword in node.keywords if keyword.arg is not None}
        try:
            (signature.bind_partial if is_abridged else signature.bind)(*node.args, **names)
        except TypeError as error:
            yield f"line {node.lineno}: {node.func.id}(): {error}"


def unknown_names(tree: ast.AST) -> set[str]:
    """Return the names that a fragment uses and does not bind itself."""
    used: set[str] = set()
    bound = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
    return used - bound


OURS = {
    *registry_drain.__all__,
    *(name for page in PAGES.values() for names in _OUR_IMPORT.findall(page) for name in names.split(", ")),
}
"""What users of this package call by name."""


@pytest.mark.parametrize("name", PAGES)
def test_the_code_fits_what_it_calls(name: str) -> None:
    """Each block compiles, what it imports is there, its calls fit, and what is ours is imported first."""
    known: dict[str, object] = {}
    for block in blocks(PAGES[name]):
        if block.language != "python":
            continue
        tree = parsed(block.text)
        known |= imported(tree)
        assert not list(misfits(tree, known)), f"{name}, the block at line {block.line}"
        missing = (unknown_names(tree) & OURS) - known.keys()
        assert not missing, f"{name}, the block at line {block.line}, does not say where {sorted(missing)} come from"


# --- commands ---------------------------------------------------------------------------------------------------------


def commands(block: Block) -> Iterator[str]:
    """Yield the commands of a block: in a console what stands behind ``$``, without a language every line."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
    elif not block.language:
        yield from lines


def named_in_text(page: str) -> list[str]:
    """Return the modules to run and the targets to make that a page names between back quotes."""
    return [" ".join(found.split()) for found in re.findall(r"`((?:python -m|make)\s[^`…]+)`", _FENCE.sub("", page))]


def complaint(command: str) -> str:
    """Return why our part of ``command`` cannot be run: no such module, arguments that do not fit; empty if it can."""
    if "REGISTRY_URL" in command or " [" in command:  # a synopsis
        return ""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    if words[:2] == ["python", "-m"]:
        return "" if importlib.util.find_spec(words[2]) else f"there is no {words[2]}"
    if words[:1] == ["make"]:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        target = next((word for word in words[1:] if "=" not in word), "help")
        return "" if re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE) else f"there is no target {target}"
    if words[:1] == ["registry-drain"]:
        del words[0]
    if not words or words[0] not in COMMANDS:
        return ""
    end = next((place for place, word in enumerate(words) if word in {"|", ">", "&&", ";", "&"}), None)
    try:
        importlib.import_module(COMMANDS[words[0]][0]).make_parser(words[0]).parse_args(words[1:end])
    except ConfigurationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_can_be_run(name: str) -> None:
    """Each command takes the arguments that the page gives it; each module and each target is there."""
    wrong = [f"{command}: {why}" for command in named_in_text(PAGES[name]) if (why := complaint(command))]
    wrong += [
        f"line {block.line} and on: {command}: {why}"
        for block in blocks(PAGES[name])
        for command in commands(block)
        if (why := complaint(command))
    ]
    assert not wrong


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    prose = _FENCE.sub("", page)
    titles = (re.sub(r"\[(.+?)\]\(.+?\)", r"\1", found["title"]) for found in _HEADING.finditer(prose))
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    """Each link within the repository names a file that is there, and a heading of it."""
    for found in _LINK.finditer(_FENCE.sub("", PAGES[name])):
        target, _, anchor = found["target"].partition("#")
        if ":" in target:
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), f"{name}: {found['target']}"
        if anchor:
            page = PAGES[str(path.resolve().relative_to(ROOT))]
            assert anchor in anchors(page), f"{name}: {found['target']}"


# --- the tests themselves ---------------------------------------------------------------------------------------------


def test_what_is_wrong_is_noticed() -> None:
    """Calls that do not fit, names from nowhere, options and modules that do not exist."""
    known = imported(ast.parse("from registry_drain import StopBudget, serve"))
    assert list(misfits(ast.parse("serve(server, ..., budget=StopBudget(grace_time=3))"), known)) != []
    assert list(misfits(ast.parse("serve(server, ..., budget=StopBudget(grace_period=3))"), known)) == []
    assert unknown_names(ast.parse("def f(x):\n    y = serve(x)\n    return y, print")) == {"serve"}
    for wrong in (
        "registry-drain list --wotch local:///x",
        "python -m examples.none",
        "deregister x --max 0",
        "make nothing",
    ):
        assert complaint(wrong)
    assert not complaint("A=1 registry-drain list local:///x --service calculator | head -1")
    assert named_in_text("`make\nbench` and\n```\n`make no`\n```\n`python -m x`") == ["make bench", "python -m x"]
    assert anchors("# What *is* `x`?\n```\n# not this\n```\n## [a link](b.md)\n") == {"what-is-x", "a-link"}
