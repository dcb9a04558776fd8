"""Log-probabilities and entropies of tokens under a linear layer. Natural logarithms."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus

from lossopt._numerics import NO_LOGIT
from lossopt._typing import Array, ArrayLike, Bool, Float, Int, Number
from lossopt.fused._how import Form, How, Memory
from lossopt.fused._layer import Features, Kernel, Layer, Weights
from lossopt.fused._logits import logits
from lossopt.fused._softmax import Softmax, Surprise, class_numbers
from lossopt.fused._walk import Facts, Operands

LogProbs: TypeAlias = Any  # one per token, or these and the entropies with `entropy=True`


def sequence_log_probs(
    features: Features,
    kernel: Kernel,
    tokens: Int[ArrayLike, "*tokens"],
    weights: Weights = None,
    *,
    entropy: bool = False,
    bias: Float[ArrayLike, " classes"] | None = None,
    where: Bool[ArrayLike, " classes"] | None = None,
    soft_cap: Number | None = None,
    temperature: Number | None = None,
    transposed: bool = False,
    memory: Memory = "auto",
    token_shards: int | None = None,
    differentiable: Form = "vjp",
) -> LogProbs:
    r"""Log-probability of each token under a linear layer, without its logits.

    $$\log \pi(y \mid x) = z_y - \log \sum_j e^{z_j}, \qquad
        H(x) = -\sum_j \pi(j \mid x) \log \pi(j \mid x)$$

    with $z$ as in `linear_softmax_cross_entropy`; for `lossopt.losses.direct_preference`,
    `clipped_surrogate` and `group_relative` on long contexts.

    Args:
      features: shape `[*tokens, depth]`.
      kernel: shape `[depth, classes]`.
      tokens: $y$, class numbers, shape `[*tokens]`; one out of range is NaN.
      weights: shape `[*tokens]` or leading axes of it; only whether they are 0 counts, and those
        tokens are not read.
      entropy: whether to return the entropy $H$ at each token, too, of the same look at the tiles.
      bias: shape `[classes]`.
      where: as in `linear_softmax_cross_entropy`.
      soft_cap: as in `linear_softmax_cross_entropy`.
      temperature: $T > 0$ that the tokens are drawn at; None is 1.
      transposed: whether the kernel has shape `[classes, depth]`.
      memory: as in `linear_softmax_cross_entropy`.
      token_shards: as in `linear_softmax_cross_entropy`.
      differentiable: as in `linear_softmax_cross_entropy`.

    Returns:
      Shape `[*tokens]`, at most 0; 0 where the weight is 0. The sum over a sequence is its
      log-probability. With `entropy` a pair: these, and the entropies in [0, log classes].

    Raises:
      ValueError, TypeError: as `linear_softmax_cross_entropy`.

    Examples:
      >>> features, kernel = jnp.eye(2), jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]))
      >>> print(np.array(lo.fused.sequence_log_probs(features, kernel, jnp.array([0, 2]))).round(3))
      [-0.357 -2.303]

    References:
      Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward
      Model", 2023.
    """
    how = How(memory, differentiable, shards=token_shards)
    layer = Layer.of(
        features,
        kernel,
        transposed=transposed,
        bias=bias,
        where=where,
        soft_cap=soft_cap,
        temperature=temperature,
    )
    rows = {"weights": weights, "labels": class_numbers(tokens, layer.tokens, name="tokens")}
    out = layer.loss("sequence_log_probs", Entropy() if entropy else Softmax(), how, True, rows)
    return (0 - out[0], out[1]) if entropy else 0 - out


class Doubt(NamedTuple):
    """What cross entropy sees of each row; the entropy of the rivals alone."""

    surprise: Surprise
    entropy: Array


@dataclasses.dataclass(frozen=True)
class Entropy:
    """Cross entropy of class numbers, and the entropy of all classes."""

    softmax = Softmax()
    copies = 3

    def look(self, tile: Array, operands: Operands, facts: Facts) -> Doubt:
        """See `Doubt`."""
        surprise = self.softmax.look(tile, operands, facts)
        z = logits(facts.columns.get("exist"), tile, operands.columns, operands.numbers)
        logs = _log_shares(z, surprise, facts)
        return Doubt(surprise, -jnp.sum(jnp.exp(logs) * logs, axis=-1))

    def pull(
        self, tile: Array, operands: Operands, facts: Facts, seen: Doubt, asked: Doubt
    ) -> tuple[Array, dict, dict]:
        """By what cross entropy asks, and by how much less a rival's log share is than most."""
        fn = partial(logits, facts.columns.get("exist"))
        z, back = jax.vjp(fn, tile, operands.columns, operands.numbers)
        logs = _log_shares(z, seen.surprise, facts)
        slope = -jnp.exp(logs) * (logs + seen.entropy[:, None]) * asked.entropy[:, None]
        surprise = self.softmax.pull(tile, operands, facts, seen.surprise, asked.surprise)
        return jax.tree.map(jnp.add, back(slope), surprise)

    def close(self, seen: Doubt, numbers: dict) -> tuple[Array, Array]:
        """Both; the entropy by the chain rule: the label or a rival, and then which."""
        loss = self.softmax.close(seen.surprise, numbers)
        lead = seen.surprise.rivals.over(seen.surprise.own)
        lead = jnp.minimum(lead, -NO_LOGIT[lead.dtype])  # of an impossible label: no 0 * inf
        rival = sigmoid(lead) * (softplus(-lead) + seen.entropy)
        return loss, rival + sigmoid(-lead) * softplus(lead)

    def nothing(self, rows: int, dtype: Any) -> Doubt:
        """No class."""
        return Doubt(self.softmax.nothing(rows, dtype), jnp.zeros(rows, dtype))

    def merge(self, one: Doubt, other: Doubt) -> Doubt:
        """The chain rule: which part the rival is in, and then which it is."""
        surprise = self.softmax.merge(one.surprise, other.surprise)

        def share(part):
            log = surprise.rivals.log_share(part.surprise.rivals)
            return jnp.exp(log) * (part.entropy - log)

        return Doubt(surprise, share(one) + share(other))


def _log_shares(z, surprise, facts):
    """Those of the rivals among themselves, finite; the label's is that of nothing."""
    nothing = NO_LOGIT[z.dtype]
    own = facts.rows["labels"][:, None] == facts.columns["classes"][None, :]
    return jnp.where(own, nothing, jnp.maximum(-surprise.rivals.over(z), nothing))
