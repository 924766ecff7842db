"""The quantized layers, one small file each."""

from vitquant.layers.act import QAct
from vitquant.layers.linear import QuantLinear
from vitquant.layers.norm import QuantNorm
from vitquant.layers.point import Mode, Point, only, points_of, set_mode, tapped
from vitquant.layers.residual import QuantResidual
from vitquant.layers.softmax import IntSoftmax

__all__ = [
    "IntSoftmax",
    "Mode",
    "Point",
    "QAct",
    "QuantLinear",
    "QuantNorm",
    "QuantResidual",
    "only",
    "points_of",
    "set_mode",
    "tapped",
]
