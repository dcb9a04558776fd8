"""What `mean` is given by the losses of optax: a number per example, but for three."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import lossopt as lo

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
SECTION = PAGE.split("## Losses of optax")[1].split("\n## ")[0]
PUBLIC = {name for name, x in vars(optax.losses).items() if name[0] != "_" and callable(x)}
NO_LOSSES = {"smooth_labels", "make_fenchel_young_loss"}  # they make labels, and a loss
OF_A_BATCH = {"ntxent", "ranking_softmax_loss", "multiclass_generalized_dice_loss"}


def _of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


TABLES, NUMBERS = [_of(4, 3)] * 2, [_of(4, 3), _of(4, dtype=jnp.int32)]
FRAMES = [_of(4, 5, 3), _of(4, 5), _of(4, 2, dtype=jnp.int32), _of(4, 2)]
INPUTS = {
    "ctc_loss": FRAMES,
    "ctc_loss_with_forward_probs": FRAMES,
    "multiclass_generalized_dice_loss": [_of(4, 5, 3)] * 2,
    "multiclass_hinge_loss": NUMBERS,
    "multiclass_perceptron_loss": NUMBERS,
    "multiclass_sparsemax_loss": NUMBERS,
    "ntxent": NUMBERS,
    "softmax_cross_entropy_with_integer_labels": NUMBERS,
    "triplet_margin_loss": [_of(4, 3)] * 3,
}


def _shape(name, **numbers):
    loss = partial(getattr(optax.losses, name), **numbers)
    with jax.numpy_rank_promotion("allow"):
        return jax.tree.leaves(jax.eval_shape(loss, *INPUTS.get(name, TABLES)))[0].shape


@pytest.mark.filterwarnings("ignore:The function convex_kl_divergence is deprecated")
@pytest.mark.parametrize("name", sorted(PUBLIC - NO_LOSSES))
def test_one_number_per_example_but_for_those_that_the_page_names(name):
    assert (_shape(name) == ()) == (name in OF_A_BATCH)
    assert _shape(name)[:1] == (() if name in OF_A_BATCH else (4,))


def test_the_page_says_what_to_take_instead():
    advice = SECTION.split("\n| task")[0]
    assert set(re.findall(r"`optax\.losses\.(\w+)`", advice)) == OF_A_BATCH
    assert _shape("ranking_softmax_loss", reduce_fn=None) == (4,)
    assert "reduce_fn=None" in advice
    dice = jax.vmap(optax.losses.multiclass_generalized_dice_loss)
    with jax.numpy_rank_promotion("allow"):
        assert jax.eval_shape(dice, _of(4, 5, 3), _of(4, 5, 3)).shape == (4,)
    vectors, labels = jnp.eye(4, 3), jnp.array([0, 1, 0, 1])
    ours = lo.losses.supervised_contrastive(vectors, labels, temperature=0.07)
    assert ours.shape == (4,)
