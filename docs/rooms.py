"""Draws the rooms of docs/architecture.md from the imports of the code: `make rooms`.

A room is a top-level package; a sub-room is what lies directly in one of the packages of `OPENED`. An arrow
says that a module of one imports a module of the other; imports inside functions and for type checkers count.
Who imports a room over others too gets no arrow to it: a -> c is not drawn beside a -> b -> c.
"""

import ast
from collections.abc import Callable
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: made by `make rooms` -->", "<!-- rooms: end -->"
PACKAGES = (
    *("serving", "web", "gateway", "launcher", "indexer", "feedback", "training", "export"),
    *("examples", "loadtest", "console", "benchmarks"),
)
OPENED = ("serving", "indexer", "feedback", "training")
ADAPTERS = "model_repository"  # no package: Triton runs each model.py by its path

Arrows = dict[str, set[str]]


def imports() -> Arrows:
    """Every module of the packages and the modules that it imports; the Triton adapters are one module."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    adapters = {
        node.module
        for file in (ROOT / ADAPTERS).glob("*/*/model.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES
    }
    return {ADAPTERS: adapters} | {
        name: graph.find_modules_directly_imported_by(name) for name in graph.modules
    }


def top(module: str) -> str:
    """The top-level package of a module."""
    return module.split(".")[0]


def room(module: str) -> str:
    """The room of a module: `serving.search` for `serving.search.widths`, `export` for `export.graphs`."""
    return ".".join(module.split(".")[: 2 if top(module) in OPENED else 1])


def between(arrows: Arrows, group: Callable[[str], str]) -> Arrows:
    """The arrows between groups: which other groups the members of each one import."""
    grouped: Arrows = {group(name): set() for name in arrows}
    for name, others in arrows.items():
        grouped[group(name)] |= {group(other) for other in others} - {group(name)}
    return grouped


def steps(arrows: Arrows) -> Arrows:
    """The arrows that no path of others replaces (transitive reduction), of a graph without circles."""

    def below(name: str) -> set[str]:
        return arrows.get(name, set()).union(*map(below, arrows.get(name, set())))

    return {name: others - set().union(*map(below, others)) for name, others in arrows.items()}


def picture(arrows: Arrows) -> str:
    """A Mermaid flowchart: an opened room shows its sub-rooms and their arrows, two rooms share one arrow.

    Args:
        arrows: Of every module (`imports`).
    """
    rooms = between(arrows, room)
    lines = ["flowchart TB"]
    for name, others in sorted(steps(between(arrows, top)).items()):
        if name in OPENED:
            inside = {sub for sub in rooms if sub.startswith(f"{name}.")}
            drawn = steps({sub: rooms[sub] & inside for sub in sorted(inside)})
            lines += [f"  subgraph {name}", "    direction TB"]
            lines += [f'    {sub}["{sub.removeprefix(name)[1:]}"]' for sub in drawn]
            lines += [f"    {sub} --> {other}" for sub, below in drawn.items() for other in sorted(below)]
            lines.append("  end")
        else:
            lines.append(f"  {name}")
        lines += [f"  {name} --> {other}" for other in sorted(others)]
    return "\n".join(["```mermaid", *lines, "```"])


def page(text: str, drawn: str) -> str:
    """The page with `drawn` between its two markers.

    Raises:
        ValueError: The page does not hold both markers once, in their order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"expected one {BEGIN!r} and, behind it, one {END!r} in {PAGE.name}")
    return f"{before}{BEGIN}\n{drawn}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), picture(imports())))
