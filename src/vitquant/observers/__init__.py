"""Observers turn tensors into statistics, from which a quantization range is chosen."""

from vitquant.observers.base import Observer
from vitquant.observers.layout import ChannelLayout
from vitquant.observers.minmax import MinmaxObserver
from vitquant.observers.percentile import PercentileObserver
from vitquant.observers.registry import OBSERVERS, make_observer
from vitquant.observers.threshold import KLObserver, OmseObserver

__all__ = [
    "OBSERVERS",
    "ChannelLayout",
    "KLObserver",
    "MinmaxObserver",
    "Observer",
    "OmseObserver",
    "PercentileObserver",
    "make_observer",
]
