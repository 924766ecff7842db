"""Observers by the names a configuration uses."""

from __future__ import annotations

from difflib import get_close_matches

from vitquant.errors import ConfigError
from vitquant.observers.base import Observer
from vitquant.observers.layout import ChannelLayout
from vitquant.observers.minmax import MinmaxObserver
from vitquant.observers.percentile import PercentileObserver
from vitquant.observers.threshold import KLObserver, OmseObserver

OBSERVERS: dict[str, type[Observer]] = {
    observer.__name__: observer for observer in (MinmaxObserver, PercentileObserver, KLObserver, OmseObserver)
}


def make_observer(
    name: str, layout: ChannelLayout, *, percentile_alpha: float, percentile_sigma: float, kl_bins: int
) -> Observer:
    """Create an observer by its class name; settings that it does not use are ignored.

    Raises:
        ConfigError: the name is unknown, or a setting that is used is out of bounds.
    """
    match name:
        case "MinmaxObserver":
            return MinmaxObserver(layout)
        case "PercentileObserver":
            return PercentileObserver(layout, percentile_alpha, percentile_sigma)
        case "KLObserver":
            return KLObserver(layout, kl_bins)
        case "OmseObserver":
            return OmseObserver(layout, kl_bins)
    close = get_close_matches(name, OBSERVERS, n=1)
    raise ConfigError(
        "unknown observer",
        got=f"'{name}'",
        expected=f"one of {', '.join(OBSERVERS)}",
        fix=f"write {close[0]}" if close else None,
    )
