"""What the pages name exists, and the tables leave nothing out."""

import ast
import pkgutil
import re
from functools import cache
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

import lossopt as lo

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTBOOK = (ROOT / "docs" / "textbook.md").read_text()
ROWS = {int(row[1]): row[0] for row in re.finditer(r"^\| (\d+) \|.*$", TEXTBOOK, re.MULTILINE)}


def test_which_loss_names_every_loss():
    page = (ROOT / "docs" / "losses.md").read_text()
    table = page.split("## Which loss?")[1].split("\n## ")[0]
    shown, linked = zip(*re.findall(r"\[`(\w+)`\]\[lossopt\.losses\.(\w+)\]", table))
    assert shown == linked
    modules = {name for _, name, _ in pkgutil.iter_modules(lo.losses.__path__)}
    public = {name for name in vars(lo.losses) if not name.startswith("_")} - modules
    assert set(shown) == public


def test_which_replaces_which_names_every_fused_loss():
    page = (ROOT / "docs" / "fused.md").read_text()
    table = page.split("## Which replaces which?")[1].split("\n## ")[0]
    callables = {name for name, x in vars(lo.fused).items() if callable(x) and name[0] != "_"}
    public = callables - {"Chunks", "Plan", "plan"}
    assert set(re.findall(r"\]\[lossopt\.fused\.(\w+)\]", table)) == public


def test_the_textbook_has_its_rows():
    assert list(ROWS) == list(range(1, 31))
    finished = {number for number, row in ROWS.items() if not row.endswith("| planned |")}
    assert finished == {1, 2, 4, 5, 7, 8, 10, 11, 14, 18, 19, 20, 21, 26, 27, 28}


@pytest.mark.parametrize("number", ROWS)
def test_what_a_row_of_the_textbook_names_exists(number):
    tests = re.findall(r"`(tests/[^`]*)`", ROWS[number])
    names = set(re.findall(r"`([^`]*)`", ROWS[number])) - set(tests)
    for path, test in (identifier.split("::") for identifier in tests):
        assert test in _functions(ROOT / path)
    for name in names:
        pkgutil.resolve_name(re.sub(r"^lo\.", "lossopt.", name))
    assert len(tests) == (0 if ROWS[number].endswith("| planned |") else 1)


def test_the_index_lists_all_pages_in_the_order_of_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1].split("\n\n")[0]
    pages = re.findall(r"(\w+\.md)$", navigation, re.MULTILINE)
    table = (ROOT / "docs" / "index.md").read_text().split("## In reading order")[1]
    assert ["index.md", *re.findall(r"\]\((\w+\.md)\)", table)] == pages
    assert set(pages) == {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = _prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            goal = page.parent / path if path else page
            assert goal.is_file(), target
            assert not anchor or anchor in _anchors(goal), target
    for name in re.findall(r"\]\[([\w.]+)\]", text):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_printed_benchmarks_stand_on_their_page_as_tables_that_wrap(page):
    text = page.read_text()
    assert "┏" not in text
    printed = re.search(r"python -m benchmarks|^met: |^platform: ", text, re.MULTILINE)
    assert bool(printed) == (page.stem == "benchmarks")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_in_code_font_exist(page):
    for name in re.findall(r"`((?:lo|lossopt|optax|jax)\.[\w.]+)[`(]", _prose(page)):
        pkgutil.resolve_name(re.sub(r"^lo\.", "lossopt.", name))


def _prose(page):
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _anchors(page):
    text = _prose(page)
    headings = {slugify(title, "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    return headings | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


@cache
def _functions(path):
    return {x.name for x in ast.walk(ast.parse(path.read_text())) if isinstance(x, ast.FunctionDef)}
