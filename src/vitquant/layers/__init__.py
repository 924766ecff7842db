"""The quantized layers, one small file each."""

from vitquant.layers.act import QAct
from vitquant.layers.attention import AttentionScores, WeightedSum
from vitquant.layers.linear import QuantLinear
from vitquant.layers.norm import QuantNorm
from vitquant.layers.patch_embed import QuantPatchEmbed
from vitquant.layers.point import Mode, Point, hooked, only, points_of, set_mode, watch_float
from vitquant.layers.product import Product
from vitquant.layers.residual import QuantEmbedding, QuantResidual
from vitquant.layers.softmax import IntSoftmax
from vitquant.layers.tokens import MeanOf, MeanToken, SelectChannels, SelectToken, SelectTokens

__all__ = [
    "AttentionScores",
    "IntSoftmax",
    "MeanOf",
    "MeanToken",
    "Mode",
    "Point",
    "Product",
    "QAct",
    "QuantEmbedding",
    "QuantLinear",
    "QuantNorm",
    "QuantPatchEmbed",
    "QuantResidual",
    "SelectChannels",
    "SelectToken",
    "SelectTokens",
    "WeightedSum",
    "hooked",
    "only",
    "points_of",
    "set_mode",
    "watch_float",
]
