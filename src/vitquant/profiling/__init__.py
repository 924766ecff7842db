"""What quantization costs, point by point and in the end."""

from vitquant.profiling.evaluate import Evaluation, IntegerEvaluation, evaluate
from vitquant.profiling.meters import PointMetrics, SqnrMeter
from vitquant.profiling.profile import ModelProfile, PointProfile, profile

__all__ = [
    "Evaluation",
    "IntegerEvaluation",
    "ModelProfile",
    "PointMetrics",
    "PointProfile",
    "SqnrMeter",
    "evaluate",
    "profile",
]
