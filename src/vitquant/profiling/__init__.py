"""What quantization costs, point by point and in the end."""

from vitquant.profiling.evaluate import Evaluation, IntegerEvaluation, evaluate
from vitquant.profiling.meters import PointMetrics, SqnrMeter
from vitquant.profiling.outliers import Outlier, OutlierWarning
from vitquant.profiling.profile import ModelProfile, PointProfile, profile

__all__ = [
    "Evaluation",
    "IntegerEvaluation",
    "ModelProfile",
    "Outlier",
    "OutlierWarning",
    "PointMetrics",
    "PointProfile",
    "SqnrMeter",
    "evaluate",
    "profile",
]
