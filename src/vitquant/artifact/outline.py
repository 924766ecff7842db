"""What a saved model must hold: a quantized model of shapes and types, made from its specification alone.

Its tensors are on torch's meta device, which keeps shapes without data. The shapes at the points and the parameters
that are folded into weights come out of the model's own graph, so nothing has to be written down a second time.
"""

from __future__ import annotations

import torch

from vitquant.architectures.families import Family, Spec
from vitquant.architectures.model import QuantModel
from vitquant.config import ModelConfig
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import ModelError
from vitquant.layers import Point, QuantLinear, QuantPatchEmbed, points_of
from vitquant.layers.layer import Shape
from vitquant.layers.linear import WeightPoint
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.quantized import integer_type


def outline(family: Family, spec: Spec, config: ModelConfig, preprocessing: Preprocessing) -> QuantModel:
    """A calibrated model without numbers: every tensor is on the meta device, in the shape and type it is to have.

    Raises:
        ConfigError: the settings do not fit the architecture.
        ModelError: images of another size than the architecture's, or scales per head, and a tensor that does not fall
            into heads.
    """
    if preprocessing.shape != (spec.in_chans, *spec.img_size):
        expected = str([spec.in_chans, *spec.img_size])
        raise ModelError(
            "images of another size", where="preprocessing", got=list(preprocessing.shape), expected=expected
        )
    model = family.shapes_only(spec, config, preprocessing)
    with torch.device("meta"):
        outline_points(model)
        params = model.graph.params()
        for step in model.graph.steps:
            if isinstance(step.layer, QuantLinear):
                outline_linear(step.layer, params[step.inputs[0]])
            elif isinstance(step.layer, QuantPatchEmbed):
                outline_linear(step.layer.linear, step.layer.pixel_params())
    return model


def outline_points(model: QuantModel) -> None:
    """Give each point the shape of its tensor, and the parameters that it will have if it needs some."""
    shapes = model.graph.shapes(model.preprocessing.shape)
    for step in model.graph.steps:
        for point in points_of(step.layer):
            outline_point(point, point.shape if isinstance(point, WeightPoint) and point.shape else shapes[step])


def outline_point(point: Point, shape: Shape) -> None:
    """The same for one point. A weight's ``shape`` is its own, others leave the batch out."""
    point.shape = shape
    if point.active and point.observes:
        tensor = torch.empty(shape if isinstance(point, WeightPoint) else (1, *shape), dtype=torch.float32)
        per_channel = torch.empty(point.layout.split(tensor).shape[1], dtype=torch.float32)
        point.params = point.params_of(per_channel, per_channel)


def outline_linear(linear: QuantLinear, params: QuantParams | None) -> None:
    """Give a linear layer codes for an input with these parameters, ``None`` where that stays float."""
    if not linear.weight.active:
        return
    rows, columns = linear.float_weight.shape
    own = linear.weight.require_params()
    codes = torch.empty(rows, columns, dtype=integer_type(own.qmin, own.qmax))
    folded = params is not None and not params.is_scalar
    bias, input_scale = (torch.empty(n, dtype=torch.float32) for n in (rows, columns))
    linear.realize(codes, bias, input_scale if folded else None)
