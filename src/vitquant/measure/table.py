"""The sensitivity table of a model: every setting of every point, estimated in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitquant.architectures.model import QuantModel
from vitquant.config import QuantConfig
from vitquant.layers import only
from vitquant.layers.graph import Stage
from vitquant.layers.layer import entered
from vitquant.layers.undisturbed import undisturbed
from vitquant.measure.candidates import CandidateSensitivity
from vitquant.measure.profile import measured_stages
from vitquant.numerics.quantized import Value, real
from vitquant.numerics.sqnr import energy
from vitquant.progress import track


class Estimates:
    """What :func:`estimate` found; the arrays of a table, as tensors on the CPU.

    ``exact`` are energies of the output's error per row, over the held-out images; empty if they were not measured.
    ``products`` float32 ``[images, draws, rows]``; ``signal`` and ``noise`` float64 ``[images]``. ``rows`` are point
    and settings, the point's own first.
    """

    def __init__(
        self,
        rows: list[tuple[str, QuantConfig]],
        products: Tensor,
        signal: Tensor,
        noise: Tensor,
        exact: list[float],
    ) -> None:
        self.rows, self.products, self.signal, self.noise, self.exact = rows, products, signal, noise, exact


@undisturbed
def estimate(
    model: QuantModel,
    images: Tensor,
    held_out: Tensor,
    candidates: Mapping[str, Sequence[QuantConfig]],
    *,
    draws: int,
    seed: int = 0,
    batch_size: int = 8,
    exact: bool = False,
) -> Estimates:
    """Estimate what other settings of points cost.

    The settings' quantization parameters come from the images that are not held out. Memory holds the float inputs of
    all stages for one batch, and the errors of all settings for one image and one stage.

    Args:
        model: calibrated, on the images that are not held out.
        images: pixels, ``uint8 [N, C, h, w]``.
        held_out: which of them are, bool ``[N]``.
        candidates: other settings of each point.
        draws: random vectors per image.
        seed: of these vectors.
        batch_size: images in one forward.
        exact: also run the model with each setting of each point, on the images that are held out.
    """
    stages = measured_stages(model)
    found = CandidateSensitivity(model, stages, candidates, draws=draws, seed=seed)
    signal: list[Tensor] = []
    noise: list[Tensor] = []
    measured: dict[str, list[float]] = {}
    batches = -(-len(images) // batch_size)
    with torch.no_grad():
        seen = images[~held_out].split(batch_size)
        found.calibrate(track(seen, "observing", len(seen)))
        parts = zip(images.split(batch_size), held_out.split(batch_size), strict=True)
        for pixels, unseen in track(parts, "estimating", batches):
            pixels = pixels.to(model.device)
            with entered(model, pixels):
                inputs = float_inputs(model, stages, pixels)
                rounded = quantized_output(model, stages, pixels)
                found.add(inputs)
                if exact and bool(unseen.any()):
                    for name, energies in found.exact([x[unseen.to(x.device)] for x in inputs]).items():
                        before = measured.get(name, [0.0] * len(energies))
                        measured[name] = [a + b for a, b in zip(before, energies, strict=True)]
            signal.append(per_image(inputs[-1]))
            noise.append(per_image(inputs[-1] - rounded))
    points = model.point_modules()
    rows = [(name, c) for name, some in candidates.items() for c in (points[name].require_config(), *some)]
    products = torch.cat([torch.stack(found.products[name]) for name in candidates], dim=-1)
    energies = [e for name in candidates for e in measured[name]] if measured else []
    return Estimates(rows, products.float(), torch.cat(signal), torch.cat(noise), energies)


@undisturbed
def measure(model: QuantModel, images: Tensor, exact: Sequence[Tensor], *, batch_size: int = 8) -> float:
    """The energy of the output's error with everything quantized, over pixels ``uint8 [N, C, h, w]``.

    ``exact`` is the float output per batch, as :func:`float_outputs` gives it.
    """
    stages, total = measured_stages(model), 0.0
    with torch.no_grad():
        for pixels, y in zip(images.split(batch_size), exact, strict=True):
            pixels = pixels.to(model.device)
            with entered(model, pixels):
                total += energy(y - quantized_output(model, stages, pixels))
    return total


@undisturbed
def float_outputs(model: QuantModel, images: Tensor, *, batch_size: int = 8) -> list[Tensor]:
    """The output of the float model per batch: the logits, or the final norm without a head."""
    stages, found = measured_stages(model), []
    with torch.no_grad():
        for pixels in images.split(batch_size):
            pixels = pixels.to(model.device)
            with entered(model, pixels):
                found.append(float_inputs(model, stages, pixels)[-1])
    return found


def float_inputs(model: QuantModel, stages: Sequence[Stage], pixels: Tensor) -> list[Tensor]:
    """The float input of every stage, and the output. Call it inside ``entered``."""
    inputs = [pixels]
    with only([], model):
        for stage in stages:
            inputs.append(real(stage.run(inputs[-1])))
    return inputs


def quantized_output(model: QuantModel, stages: Sequence[Stage], pixels: Tensor) -> Tensor:
    """The output with everything quantized. Call it inside ``entered``."""
    rounded: Value = pixels
    with only(list(model.point_modules().values()), model):
        for stage in stages:
            rounded = stage.run(rounded)
    return real(rounded)


def per_image(x: Tensor) -> Tensor:
    """Sum of squares of each image, float64 ``[B]``, on the CPU."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.double().square().cpu()
