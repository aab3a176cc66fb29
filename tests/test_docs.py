"""The pages keep what they promise: links lead somewhere, and docs/paper.md names functions and tests that are there."""

import ast
import re
from pathlib import Path

import pytest

import train

ROOT = Path(train.__file__).parent
PAPER = ROOT / "docs" / "paper.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def links(text):
    """(text, target) of each link that stays in the repository, without its place in the page."""
    return [(shown, target.split("#")[0]) for shown, target in LINK.findall(text) if "://" not in target]


def tables():
    """Each table of docs/paper.md as its rows, each row as its cells; the head is the first, the ruler left out."""
    found, before = [], ""
    for line in PAPER.read_text().splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        before = line
    return [[head, *rows] for head, _, *rows in found]


def equations():
    return [row for head, *rows in tables() if head[0].startswith("equation") for row in rows]


def defined(path):
    """The functions and classes of a file, and what a class holds as Class.name."""

    def names(body, prefix=""):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from names(node.body, f"{prefix}{node.name}.")

    return set(names(ast.parse(path.read_text()).body))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    missing = [target for _, target in links(page.read_text()) if not (page.parent / target).exists()]
    assert not missing


def test_the_reading_order_says_how_long_each_file_is():
    rows = [line.strip("|").split("|") for line in PAGES[0].read_text().splitlines() if line.startswith("| [ddpm/")]
    assert len(rows) > 5
    for files, lines, *_ in rows:
        long = [len((ROOT / target).read_text().splitlines()) for _, target in links(files)]
        told = [int(number) for number in lines.split(",")]
        near = len(told) == len(long) and all(abs(a - b) <= 0.1 * b for a, b in zip(told, long, strict=True))
        assert near, f"README.md says that{files}has{lines}lines; now it has {long}"


def test_each_row_has_all_its_cells():
    assert len(tables()) > 5 and len(equations()) > 50
    for head, *rows in tables():
        for row in rows:
            assert len(row) == len(head) and all(row), row


@pytest.mark.parametrize(
    "column, place, prefix", [(2, "..", ""), (3, "../tests/", "test_")], ids=["functions", "tests"]
)
def test_what_a_row_names_is_in_the_file_that_it_links(column, place, prefix):
    for row in equations():
        assert links(row[column]), row
        for shown, target in links(row[column]):
            name = shown.strip("`")
            assert target.startswith(place) and name.startswith(prefix), shown
            assert name in defined(PAPER.parent / target), f"{name} is not in {target}"


def test_the_mathematics_can_be_typeset():
    """What a table or Markdown would take for its own: a bar, an escaped sign, a brace or a dollar that has no partner."""
    for line in PAPER.read_text().splitlines():
        assert line.count("$") % 2 == 0, line
        for formula in line.split("$")[1::2]:
            assert not re.search(r"\||\\[^A-Za-z]|[<>*]", formula) and formula == formula.strip(), formula
            assert formula.count("{") == formula.count("}") and formula.count("(") == formula.count(")"), formula
