"""What documents, docstrings and comments point at is there: files, modules, names in them, keys, targets."""

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
from pydantic import BaseModel

from docs.rooms import ADAPTERS, PACKAGES, ROOT
from training.preset.preset import Preset

SECTIONS: dict[str, type[BaseModel]] = {
    name: next(kind for kind in (*get_args(field.annotation), field.annotation) if kind is not NoneType)
    for name, field in Preset.model_fields.items()
}
MODULES = (*PACKAGES, "deploy", "docs", "tests")
FOLDERS = (*MODULES, ADAPTERS, "configs", ".ci")
SOURCES = ("py", "sh", "in", "toml", "yaml", "yml")

OUTPUT = "(?:csv|json|onnx|png|py)`"  # how a file ends that a run writes

# How a line points at something, and what it points at.
POINTERS = {
    # docs/data.md, serving/load/*.py; not build/docs/x, https://host/docs/x, configs/{preset}.yaml
    "path": rf"(?<![\w./<>${{}}*-])((?:{'|'.join(map(re.escape, FOLDERS))})(?:/[\w.*-]+)+)(?![\w.*-]*[{{<$])",
    # [text](index.md)
    "link": r"\]\((?!\w+:)([^)#\s]+)",
    # `selection.py`, `kubernetes/base/service.yaml`
    "file": rf"`((?:[\w.-]+/)*[\w.-]+\.(?:{'|'.join(SOURCES)}))`",
    # `serving.search.selection.top`, `serving.widths`; not `training.png`
    "name": rf"`((?:{'|'.join(MODULES)})(?:\.(?!{OUTPUT})\w+)+)(?:\(\))?`",
    # `model.width`; not `evaluation.json`, `model.layers.0`
    "key": rf"`((?:{'|'.join(SECTIONS.keys() - MODULES)})\.(?!{OUTPUT})\w+)`",
    # python -m export.tensorrt
    "command": rf"python -m ((?:{'|'.join(MODULES)})(?:\.\w+)*)\b",
    # `make data tokenize`, "make setup", or a line of these words alone
    "targets": r"(?:[`\"']|^ *)make ([\w=.-]+(?: +[\w=.-]+)*) *(?=[`\"'#]|$)",
}


@cache
def files() -> list[Path]:
    """Every file that may point at something."""
    found = [*ROOT.glob("*"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*"))]
    names, endings = ("Makefile", "Dockerfile", "run"), (*SOURCES, "md")
    return sorted(f for f in found if f.is_file() and (f.suffix[1:] in endings or f.name in names))


@cache
def members(node: ast.Module | ast.ClassDef) -> dict[str, ast.stmt]:
    """The names that a module or a class gives, those that methods set on `self` too."""
    found: dict[str, ast.stmt] = {}
    for part in node.body:
        if isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[part.name] = part
        elif isinstance(part, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: part for alias in part.names}
        for inner in ast.walk(part):
            match inner:
                case ast.Name(id=name, ctx=ast.Store()) if not isinstance(part, ast.FunctionDef):
                    found[name] = part
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    found[name] = part
    return found


@cache
def parsed(file: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(file.read_text())


def is_name(dotted: str) -> bool:
    """Whether it is a folder, a module, or something that a module or a class in it gives."""
    folder, parts = ROOT, dotted.split(".")
    while parts and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    if not parts:
        return True
    file = folder / f"{parts[0]}.py"
    if file.is_file():
        return gives(parsed(file), parts[1:])
    return (folder / "__init__.py").is_file() and gives(parsed(folder / "__init__.py"), parts)


def gives(node: ast.AST, parts: list[str]) -> bool:
    """Whether a module or class gives what the parts of a dotted name behind it name."""
    if not parts:
        return True
    part = members(node).get(parts[0]) if isinstance(node, ast.Module | ast.ClassDef) else None
    if isinstance(part, ast.ImportFrom):  # of a package: training.tokenizer.tokenizer.Tokenizer.encode
        return is_name(".".join((str(part.module), *parts)))
    return part is not None and gives(part, parts[1:])


def is_path(found: str) -> bool:
    """Whether the repository has this path; of a pattern, whose files may be yet to be made, its folder."""
    folder, pattern, _ = found.partition("*")
    return (ROOT / (folder.rpartition("/")[0] if pattern else found.rstrip("."))).exists()


def is_command(module: str) -> bool:
    """Whether `python -m` can run it."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return file.is_file() and (path.is_dir() or '__name__ == "__main__"' in file.read_text())


def is_key(key: str) -> bool:
    """Whether it is a key of a preset, as `--set` takes it."""
    section, *names = key.split(".")
    model = SECTIONS.get(section)
    for name in names:
        field = None if model is None else model.model_fields.get(name)
        if field is None:
            return False
        kinds = (*get_args(field.annotation), field.annotation)
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return bool(names)


@cache
def targets() -> set[str]:
    """Of the Makefile."""
    rules = re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {target for rule in rules for target in rule.split()}


THERE: dict[str, Callable[[str, Path], bool]] = {
    "path": lambda found, file: is_path(found),
    "link": lambda found, file: (file.parent / found).exists(),
    "file": lambda found, file: any(f"/{f}".endswith(f"/{found}") for f in files()),
    "name": lambda found, file: is_name(found) or is_key(found),
    "key": lambda found, file: is_key(found),
    "command": lambda found, file: is_command(found),
    "targets": lambda found, file: all("=" in word or word in targets() for word in found.split()),
}


def dangling(kind: str, text: str, file: Path) -> list[str]:
    """Where the text of a file points at what is not there."""
    return [
        f"{file.relative_to(ROOT)}:{number}: {match[1].strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        for match in re.finditer(POINTERS[kind], line)
        if not THERE[kind](match[1], file)
    ]


@pytest.mark.parametrize("kind", POINTERS)
def test_what_is_pointed_at_is_there(kind):
    mine = Path(__file__)
    found = [
        fault
        for file in files()
        if file != mine and (kind != "link" or file.suffix == ".md")
        for fault in dangling(kind, file.read_text(), file)
    ]
    assert not found, "expected what is named to be there: " + "; ".join(found)


@pytest.mark.parametrize(
    ("kind", "text", "faults"),
    [
        ("path", "see docs/data.md and serving/load/policy.py.", 0),
        (
            "path",
            "build/docs/no.md, https://x.org/docs/no, configs/{preset}.yaml, model_repository/lazyar_*",
            0,
        ),
        ("path", "see docs/no.md,\nserving/no/policy.py, serving/no/*.py", 3),
        ("link", "[a](index.md) [b](../README.md#x) [c](https://x.org/no.md) [d](no.md)", 1),
        (
            "file",
            "`policy.py`, `kubernetes/base/kustomization.yaml`, `report.json`; `no.py`, `base/no.yaml`",
            2,
        ),
        ("name", "`serving.load.policy`, `serving.load.policy.Decision.degraded`, `serving.load`", 0),
        (
            "name",
            "`export.builder.Builder.device`, `training.model.gr4ad.Generator.encode`, `serving.widths`",
            0,
        ),
        ("name", "`serving.load.police`, `serving.load.policy.Decision.no`, `training.no`, `serving.no`", 4),
        ("key", "`model.width`, `evaluation.json`, `model.layers.0`, `model.no`, `training.png`", 1),
        ("command", "python -m export.tensorrt, python -m loadtest, python -m pytest", 0),
        ("command", "python -m export.engines, python -m export.no, python -m serving", 3),
        ("targets", "`make data train`, `make export TARGET=cpu`, `make RUN=x`; make no sense", 0),
        ("targets", "    make index   # comment", 0),
        ("targets", '`make no`, "make data no"\nmake demos QUICK=1', 3),
    ],
)
def test_what_is_not_there_is_found(kind, text, faults):
    assert len(dangling(kind, text, ROOT / "docs" / "page.md")) == faults
