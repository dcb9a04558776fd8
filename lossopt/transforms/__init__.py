"""Gradient transformations in the protocol of `optax`: they chain with all of its own."""

from lossopt import _missing as _missing
from lossopt.transforms._accumulation import AccumulateState as AccumulateState
from lossopt.transforms._accumulation import accumulate as accumulate
from lossopt.transforms._adaptive import AdagradState as AdagradState
from lossopt.transforms._adaptive import AdamState as AdamState
from lossopt.transforms._adaptive import RmspropState as RmspropState
from lossopt.transforms._adaptive import adagrad as adagrad
from lossopt.transforms._adaptive import adam as adam
from lossopt.transforms._adaptive import rmsprop as rmsprop
from lossopt.transforms._by_path import ScaleByPathState as ScaleByPathState
from lossopt.transforms._by_path import scale_by_path as scale_by_path
from lossopt.transforms._clipping import ClipByGlobalNormState as ClipByGlobalNormState
from lossopt.transforms._clipping import clip_by_global_norm as clip_by_global_norm
from lossopt.transforms._iterates import AverageState as AverageState
from lossopt.transforms._iterates import average as average
from lossopt.transforms._iterates import averaged as averaged
from lossopt.transforms._plateau import ReduceOnPlateauState as ReduceOnPlateauState
from lossopt.transforms._plateau import reduce_on_plateau as reduce_on_plateau
from lossopt.transforms._proximal import adam_metric as adam_metric
from lossopt.transforms._proximal import proximal as proximal
from lossopt.transforms._proximal import rms_metric as rms_metric
from lossopt.transforms._quantized import QuantizedState as QuantizedState
from lossopt.transforms._quantized import quantized as quantized
from lossopt.transforms._rounding import KahanState as KahanState
from lossopt.transforms._rounding import StochasticRoundingState as StochasticRoundingState
from lossopt.transforms._rounding import kahan as kahan
from lossopt.transforms._rounding import stochastic_rounding as stochastic_rounding
from lossopt.transforms._rules import ProximalState as ProximalState
from lossopt.transforms._rules import RuleState as RuleState
from lossopt.transforms._sgd import MomentumState as MomentumState
from lossopt.transforms._sgd import momentum as momentum
from lossopt.transforms._sgd import sgd as sgd
from lossopt.transforms._spikes import SkipSpikesState as SkipSpikesState
from lossopt.transforms._spikes import skip_spikes as skip_spikes

__getattr__ = _missing.Missing(__name__)
