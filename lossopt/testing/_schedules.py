"""What every schedule must do."""

import jax
import jax.numpy as jnp
import optax

from lossopt._typing import ArrayLike
from lossopt.testing._laws import close, finite, require


def check_schedule(
    schedule: optax.Schedule,
    steps: int,
    *,
    start: ArrayLike | None = None,
    end: ArrayLike | None = None,
) -> None:
    """Asserts the laws of a schedule.

    One finite number for each count from 0 to beyond `steps`, the same eagerly, under `jit` and
    under `vmap`; the documented start; and an end that is held.

    Args:
      schedule: function from a count to a number.
      steps: the count from which `end` holds, at least 1.
      start: the value at count 0; None leaves it open.
      end: the value from count `steps` on; None leaves it open.

    Raises:
      AssertionError: at the first law that does not hold; the message says which.

    Examples:
      >>> lo.testing.check_schedule(lo.schedules.linear(1.0, 0.1, 10), 10, start=1.0, end=0.1)
    """
    law = "a schedule gives one finite number for each count"
    counts = jnp.arange(steps + 4)
    eager = jnp.stack([jnp.asarray(schedule(count)) for count in range(steps + 4)])
    require(eager.ndim == 1, f"{law}; got shape {eager.shape[1:]}")
    finite(law, eager)
    try:
        jitted = jnp.stack(list(map(jax.jit(schedule), counts)))
    except TypeError as error:
        raise AssertionError(f"jit must take the schedule; {error}") from error
    close("jit must agree", jitted, eager, atol=1e-7)
    close("vmap must agree", jax.vmap(schedule)(counts), eager, atol=1e-7)
    if start is not None:
        close("the start", eager[0], start, atol=1e-7)
    if end is not None:
        close("the end must be held", eager[steps:], jnp.full(4, end), atol=1e-7)
