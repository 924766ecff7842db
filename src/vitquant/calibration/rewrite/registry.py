"""Rewrites by the names that a configuration uses."""

from __future__ import annotations

from vitquant.calibration.rewrite.canonical_form import CanonicalForm
from vitquant.calibration.rewrite.centring import Centring
from vitquant.calibration.rewrite.rewrite import Rewrite
from vitquant.calibration.rewrite.sorted_channels import SortedChannels
from vitquant.config.repair import REPAIR_SETTINGS, CanonicalFormSettings, CentringSettings, SortedChannelsSettings
from vitquant.layers.layer import AppliedRewrite, Composite

REWRITES: dict[str, type[Rewrite]] = {
    CanonicalFormSettings.name: CanonicalForm,
    CentringSettings.name: Centring,
    SortedChannelsSettings.name: SortedChannels,
}
"""What each rewrite does; its settings are in ``vitquant.config.repair`` under the same name."""


def rewrite_again(model: Composite, applied: AppliedRewrite) -> None:
    """Do to a model with the original float weights what was done to another one.

    Raises:
        ModelError: the tensors are not those of this model.
    """
    REWRITES[applied.name](REPAIR_SETTINGS[applied.name]()).apply(model, applied.measured)
    model.rewrites = (*model.rewrites, applied)
