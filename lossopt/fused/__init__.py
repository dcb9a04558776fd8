"""Losses of what a big matrix is made of, exact, without the matrix; most return a `Mean`."""

from lossopt import _missing as _missing
from lossopt.fused._cache import cached_value_and_grad as cached_value_and_grad
from lossopt.fused._contrastive import clip as clip
from lossopt.fused._contrastive import sigmoid_pairs as sigmoid_pairs
from lossopt.fused._contrastive import supervised_contrastive as supervised_contrastive
from lossopt.fused._distillation import Teacher as Teacher
from lossopt.fused._how import Chunks as Chunks
from lossopt.fused._lists import approximate_ndcg as approximate_ndcg
from lossopt.fused._lists import lambda_rank as lambda_rank
from lossopt.fused._log_probs import sequence_log_probs as sequence_log_probs
from lossopt.fused._pairs import pairwise_hinge as pairwise_hinge
from lossopt.fused._pairs import pairwise_logistic as pairwise_logistic
from lossopt.fused._pairs import pairwise_squared_hinge as pairwise_squared_hinge
from lossopt.fused._plan import Plan as Plan
from lossopt.fused._plan import plan as plan
from lossopt.fused._sigmoid import linear_sigmoid_cross_entropy as linear_sigmoid_cross_entropy
from lossopt.fused._softmax import linear_softmax_cross_entropy as linear_softmax_cross_entropy

__getattr__ = _missing.Missing(__name__)
