"""What quantization costs, point by point and in the end."""

from vitquant.measure.evaluate import evaluate
from vitquant.measure.outliers import Outlier, OutlierWarning
from vitquant.measure.profile import ModelProfile, PointProfile, profile
from vitquant.numerics.sqnr import SqnrMeter
from vitquant.results import Evaluation, IntegerEvaluation, PointMetrics

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
