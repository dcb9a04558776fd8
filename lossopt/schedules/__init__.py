"""Schedules: functions from the step count to a number, as `optax.Schedule`.

Every level and every length may be a tracer. A count is a whole number or a fraction, one number
or an array of them; values are float32 or wider. Before count 0 a schedule holds its start, and one
that ends holds its end. A length of 0 is over at once. A period is above 0; one that is traced and
0 counts as 1.
"""

from lossopt import _missing as _missing
from lossopt.schedules._combinators import join as join
from lossopt.schedules._combinators import per_epoch as per_epoch
from lossopt.schedules._combinators import scale as scale
from lossopt.schedules._combinators import warmup as warmup
from lossopt.schedules._cycles import cosine_restarts as cosine_restarts
from lossopt.schedules._cycles import one_cycle as one_cycle
from lossopt.schedules._cycles import trapezoid as trapezoid
from lossopt.schedules._cycles import triangular as triangular
from lossopt.schedules._shapes import constant as constant
from lossopt.schedules._shapes import cosine as cosine
from lossopt.schedules._shapes import exponential as exponential
from lossopt.schedules._shapes import inverse_sqrt as inverse_sqrt
from lossopt.schedules._shapes import linear as linear
from lossopt.schedules._shapes import polynomial as polynomial
from lossopt.schedules._shapes import step as step

__getattr__ = _missing.Missing(__name__)
