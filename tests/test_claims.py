"""A sentence of a page that says every, any or exact is held by a test that could fail."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOTAL = re.compile(r"\b(every|any|exact)", re.IGNORECASE)
CLAIMS = {
    "README.md": {
        "any tree of means": "test_any_tree_of_means",
        "any number of terms": "test_any_number_of_terms",
        "exact, with masks": "test_float32_is_exact_and_never_reads_what_has_no_weight",
        "and second derivatives": "test_second_derivatives_equal_those_of_the_dense_loss",
        "exactly zero under Adam": "test_settles_on_the_lasso_with_exact_zeros",
        "exact accumulation": "test_any_weights_and_windows",
        "onto any devices": "test_onto_any_mesh_and_back",
        "Every optax transformation": "test_every_optimizer_takes_the_steps_of_a_plain_loop",
    },
    "docs/schedules.md": {
        "Every level and every length": "test_every_argument_may_be_traced",
    },
    "docs/checkpoints.md": {
        "what every file and every leaf must be": "test_what_it_holds",
        "before Orbax opens anything": "test_damaged_files",
        "Every 32-bit word": "test_of_every_dtype",
        "There is no pickle anywhere": "test_none_is_called",
        "the states of every transformation": "test_every_kind_of_leaf",
        "Every leaf is read again": "test_what_is_not_what_was_in_memory_does_not_land",
    },
}


@pytest.mark.parametrize("page", CLAIMS)
def test_a_sentence_that_leaves_nothing_out_is_held_by_a_test(page):
    for sentence in filter(TOTAL.search, _sentences(ROOT / page)):
        held = [test for words, test in CLAIMS[page].items() if words in sentence]
        assert held, f"{page} claims without a test: {sentence}"
        assert set(held) <= _tests()


@cache
def _tests():
    paths = ROOT.glob("tests/**/*.py")
    trees = [ast.walk(ast.parse(path.read_text())) for path in paths]
    return {x.name for tree in trees for x in tree if isinstance(x, ast.FunctionDef)}


def _sentences(page):
    """Without code, in whose font words are names."""
    prose = re.sub(r"^```.*?^```|`[^`]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n- |\n\| ", prose):
        yield from re.split(r"(?<=[.!?])\s", " ".join(paragraph.split()))
