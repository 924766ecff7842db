"""Methods that change a calibrated model block by block, so that it computes more nearly what the float model does.

A method is a :class:`~vitquant.calibration.repair.step.RepairStep` in a file of its own. To add one, write its settings
in ``vitquant.config.repair`` and the step here, and name it in ``registry.py``.
"""

from vitquant.calibration.repair.registry import REPAIR_STEPS, make_steps
from vitquant.calibration.repair.run import RepairRecord, RepairWarning, repair_images
from vitquant.calibration.repair.step import GraphBlock, LayerInputs, RepairStep

__all__ = [
    "REPAIR_STEPS",
    "GraphBlock",
    "LayerInputs",
    "RepairRecord",
    "RepairStep",
    "RepairWarning",
    "make_steps",
    "repair_images",
]
