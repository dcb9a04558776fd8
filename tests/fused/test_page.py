"""What the page of the room says of every case, of any, or calls exact, a test holds."""

import re
from pathlib import Path

import pytest

from tests.test_docs import _functions, _prose

ROOT = Path(__file__).parents[2]
TEXT = " ".join(_prose(ROOT / "docs" / "fused.md").split("## Figures")[0].split())
CLAIMS = {
    "what they return is exact": "test_equals_the_dense_loss_in_float64",
    "what never exists": "test_nothing_as_large_as_the_matrix_is_ever_made",
    "A name in both rooms is one objective": "test_the_mean_is_that_of_the_losses",
    "masks and refusals are the same": "test_the_rooms_refuse_alike_and_take_alike",
    "Any other label out of range makes the value NaN": "test_labels_out_of_range",
    "one of weight 0 is still a negative": "test_the_mean_is_that_of_the_losses",
    "takes one exact step of the loss": "test_pieces_give_the_gradient_of_the_whole",
    "They need not divide anything": "test_equals_the_dense_loss_in_float64",
    "is added up once": "test_the_kernel_gradient_is_reduced_once_and_all_devices_share_the_work",
    "and each device makes its part": "test_a_vocabulary_is_never_gathered_where_tokens_are_whole",
    "They gather embeddings, never the table": "test_no_device_holds_all_pairs",
    "A loss near 0 keeps its digits": "test_a_loss_near_zero_keeps_its_digits",
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_is_held_by_a_test(claim):
    assert claim in TEXT
    assert any(CLAIMS[claim] in _functions(path) for path in ROOT.glob("tests/fused/*.py"))


def test_no_claim_is_without_a_test():
    sentences = re.split(r"(?<=[.:])\s+(?=[A-Z`-])", TEXT)
    found = [x for x in sentences if re.search(r"\b(every|any|anything|exact\w*)\b", x, re.I)]
    assert found
    for sentence in found:
        assert any(claim in sentence for claim in CLAIMS), sentence
