"""Methods that rewrite the float weights of a model before the calibration; what it computes stays the same.

A method is a :class:`~vitquant.calibration.rewrite.rewrite.Rewrite` in a file of its own. To add one, write its
settings in ``vitquant.config.repair`` and the method here, and name it in ``registry.py``.
"""

from vitquant.calibration.rewrite.registry import REWRITES, rewrite_again
from vitquant.calibration.rewrite.rewrite import Rewrite, rewrite_model

__all__ = ["REWRITES", "Rewrite", "rewrite_again", "rewrite_model"]
