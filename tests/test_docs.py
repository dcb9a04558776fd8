"""What the pages name exists, and the tables leave nothing out."""

import ast
import pkgutil
import re
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import pytest
from markdown.extensions.toc import slugify

import lossopt as lo
from docs import _pictures

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
    assert finished == {1, 2, 4, 5, 7, 8, 10, 11, 12, 14, 15, 18, 19, 20, 21, 22, 26, 27, 28}


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
            if path.removeprefix("pictures/").removesuffix(".svg") in _pictures.PICTURES:
                continue
            goal = page.parent / path if path else page
            assert goal.is_file(), target
            assert not anchor or anchor in _anchors(goal), target
    for name in re.findall(r"\]\[([\w.]+)\]", text):
        pkgutil.resolve_name(name)


def test_pages_show_all_pictures_and_say_what_is_on_them():
    text = "".join(page.read_text() for page in PAGES)
    shown = re.findall(r"!\[([^\]]*)\]\(pictures/(\w+)\.svg\)", text)
    assert {name for _, name in shown} == set(_pictures.PICTURES)
    assert all(len(said) > 9 for said, _ in shown)


def test_each_schedule_and_each_regularizer_has_its_picture():
    public = lambda room: {name for name in vars(room) if name[0] != "_"}
    modules = lambda room: {name for _, name, _ in pkgutil.iter_modules(room.__path__)}
    of = lambda room: public(room) - modules(room)
    assert set(_pictures.SCHEDULES) == of(lo.schedules)
    protocols = {"Regularizer", "Summand", "Quadratic", "add", "by_path"}
    assert set(_pictures.REGULARIZERS) == of(lo.regularizers) - protocols


def test_each_family_of_losses_has_its_picture():
    page = (ROOT / "docs" / "losses.md").read_text()
    families = [part.split("\n")[0].lower() for part in page.split("\n## ") if "\n::: " in part]
    assert list(_pictures.FAMILIES) == families


def test_a_picture_is_the_same_bytes_each_time():
    draw = _pictures.PICTURES["L1_levels"]
    assert _pictures.svg(draw) == _pictures.svg(draw)


def test_microbatches_take_the_steps_of_the_whole_batch_and_their_means_do_not():
    whole, ours, means = (
        run.history["validation/loss"] for run in _pictures.microbatches().values()
    )
    assert jnp.allclose(ours, whole, rtol=1e-5)
    assert whole[-1] < 0.8 * whole[0]
    assert means[-1] > 1.3 * whole[-1]


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
