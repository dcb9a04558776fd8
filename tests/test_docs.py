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
README = (ROOT / "README.md").read_text()
CLAIMS = {
    "masks, ragged batches, microbatches": "test_any_weights",
    "devices give the value and gradient": "test_ours_is_the_truth_in_the_table",
    "under `jit`, `vmap` and `pmap`": "test_devices_run_side_by_side",
    "exact for any number of terms": "test_terms_of_different_weights",
    "need not divide the batch": "test_microbatches_from_one_to_the_number_of_rows",
    "one number per example, strict on shapes": "test_law",
    "finite at logits of ±10 000": "test_survives_large_predictions",
    "out of range is NaN in its row": "test_out_of_range_is_nan_and_never_another_class",
    "warmup lengths can be swept": "test_warmup_lengths_may_be_swept",
    "without the table in between": "test_nothing_as_large_as_the_matrix_is_ever_made",
    "a value and a proximal operator": "test_prox_minimizes",
    "all but two under any diagonal metric": "test_adam_takes_all_regularizers_but_two",
    "the ragged last batch included": "test_the_ragged_last_batch_is_a_smaller_step",
    "the newest good step restored": "test_to_the_newest_step_that_verifies",
    "a killed run resumes with the same bits": "test_quick_form",
    "laws that our own losses, regularizers, schedules and transformations pass": "test_transform",
    "exactly zero under Adam": "test_settles_on_the_lasso_with_exact_zeros",
    "supports are those of scikit-learn": "test_coefficients_and_support_are_those_of_scikit_learn",
    "each be a tracer or a schedule": "test_transform",
    "fit in a quarter of the memory": "test_two_bytes_a_parameter_for_both_moments",
    "bfloat16 parameters that follow float32": "test_the_final_loss_is_that_of_float32",
    "exact accumulation of weighted microbatches": "test_any_weights_and_windows",
    "transformations that take one gradient of the batch": "test_it_runs",
    "Its schedules work here": "test_schedules_of_optax_are_rates_here_and_parts_of_our_schedules",
    "but [nine, such as": "test_what_the_page_excepts_does_not_run",
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_of_the_readme_is_held_by_a_test(claim):
    assert claim in README
    assert any(CLAIMS[claim] in _functions(path) for path in ROOT.glob("tests/**/*.py"))


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
    public = {name for name, x in vars(lo.fused).items() if callable(x)} - {
        "Chunks",
        "Plan",
        "plan",
    }
    assert set(re.findall(r"\]\[lossopt\.fused\.(\w+)\]", table)) == public


def test_the_textbook_has_its_rows():
    assert list(ROWS) == list(range(1, 31))
    finished = {number for number, row in ROWS.items() if not row.endswith("| planned |")}
    assert finished == {1, 2, 4, 5, 7, 10, 11, 14, 18, 19, 20, 21, 26}


@pytest.mark.parametrize("number", ROWS)
def test_what_a_row_of_the_textbook_names_exists(number):
    tests = re.findall(r"`(tests/[^`]*)`", ROWS[number])
    names = set(re.findall(r"`([^`]*)`", ROWS[number])) - set(tests)
    for path, test in (identifier.split("::") for identifier in tests):
        assert test in _functions(ROOT / path)
    for name in names:
        pkgutil.resolve_name(re.sub(r"^lo\.", "lossopt.", name))
    assert len(tests) == (0 if ROWS[number].endswith("| planned |") else 1)


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
