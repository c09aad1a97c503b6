"""The plan of the code: no circle of imports, modules of one idea, arguments that can be told apart."""

import ast
import statistics
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from docs.rooms import (
    ADAPTERS,
    BEGIN,
    END,
    OPENED,
    PACKAGES,
    PAGE,
    ROOT,
    between,
    imports,
    page,
    picture,
    room,
    top,
)

# What runs in production or makes what runs there.
PRODUCT = (
    *(
        "serving",
        "web",
        "gateway",
        "launcher",
        "indexer",
        "feedback",
        "training",
        "export",
        "loadtest",
        "console",
    ),
    ADAPTERS,
)

MEDIAN_LINES, MOST_LINES = 150, 350
MOST_POSITIONAL = 4
# Of other libraries, which take any number of values or give them no names.
TAKES_MANY = {"select", "zeros", "reshape", "make_graph", "product", "zip", "Greenlet", "warning"}


def _files(rooms: tuple[str, ...]) -> list[Path]:
    return [file for name in rooms for file in sorted((ROOT / name).rglob("*.py"))]


def _circle(arrows: dict[str, set[str]]) -> str:
    """The first circle found as `a -> b -> a`, or nothing."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return " -> ".join(reversed(error.args[1]))  # graphlib names the imported module first
    return ""


def _too_many_positional(source: str) -> list[int]:
    """The lines of calls with five or more positional arguments."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and len(node.args) > MOST_POSITIONAL
        and not any(isinstance(argument, ast.Starred) for argument in node.args)
        and ast.unparse(node.func).split(".")[-1] not in TAKES_MANY
    ]


def test_the_picture_of_the_rooms_is_that_of_the_code() -> None:
    text = PAGE.read_text()
    assert page(text, picture(imports())) == text, "docs/architecture.md shows other rooms: run `make rooms`"


def test_a_picture_shows_each_step_once_and_sub_rooms_in_their_room() -> None:
    arrows = {
        "serving": set(),
        "serving.load.a": {"serving.search.b", "serving.files"},
        "serving.load.c": {"serving.search.b", "serving.load.a"},
        "serving.search.b": {"serving.files"},
        "serving.files": set(),
        "export.x": {"serving.search.b", "export.y"},
        "export.y": {"serving.files"},
    }
    assert [line.strip() for line in picture(arrows).splitlines()] == [
        *("```mermaid", "flowchart TB", "export", "export --> serving", "subgraph serving", "direction TB"),
        *('serving.files["files"]', 'serving.load["load"]', 'serving.search["search"]'),
        *("serving.load --> serving.search", "serving.search --> serving.files", "end", "```"),
    ]


@pytest.mark.parametrize("text", ["no marker", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"])
def test_a_page_without_both_markers(text) -> None:
    with pytest.raises(ValueError, match="expected one .*rooms: made by .* and, behind it, one .*rooms: end"):
        page(text, "drawn")


@pytest.mark.parametrize("group", [str, room, top], ids=["modules", "rooms", "packages"])
def test_imports_make_no_circle(group) -> None:
    circle = _circle(between(imports(), group))
    assert not circle, f"imports go round: {circle}"


def test_a_circle_is_found_and_named_in_the_order_of_its_imports() -> None:
    arrows = {"x.a": {"x.b"}, "x.b": {"x.c", "x.d"}, "x.c": {"x.a"}, "x.d": set()}
    circle = _circle(arrows).split(" -> ")
    assert sorted(circle[1:]) == ["x.a", "x.b", "x.c"]
    assert all(after in arrows[before] for before, after in zip(circle, circle[1:], strict=False))
    assert not _circle({"x.a": {"x.b", "x.d"}, "x.b": {"x.d"}, "x.d": set()})


def test_no_module_of_the_product_is_long() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in _files(PRODUCT)}
    long = {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
    assert not long, f"expected at most {MOST_LINES} lines, split what a second idea moved into: {long}"
    # One line is an __init__ that says what its room is.
    median = statistics.median(lines for lines in lengths.values() if lines > 1)
    assert median <= MEDIAN_LINES, f"expected a median module of at most {MEDIAN_LINES} lines, got {median}"


def test_arguments_of_long_calls_are_named() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in _files((*PACKAGES, ADAPTERS))
        for line in _too_many_positional(file.read_text())
    ]
    assert not found, f"expected at most {MOST_POSITIONAL} positional arguments: {found}"


def test_a_call_with_five_positional_arguments_is_found() -> None:
    assert _too_many_positional(
        "f(1, 2, 3, 4)\ng(1, 2, 3, 4, k=5)\nh.i(1, 2, 3, 4,\n    5)\nj(*a, 2, 3, 4, 5)"
    ) == [3]


def test_every_rule_names_rooms_that_exist() -> None:
    assert set(OPENED) < set(PACKAGES)
    assert all(_files((name,)) for name in (*PACKAGES, *PRODUCT))
