"""The sensitivity table of a model: every setting of every point, estimated in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitquant.architectures.model import QuantModel
from vitquant.config import QuantConfig
from vitquant.layers import only
from vitquant.layers.layer import entered
from vitquant.layers.undisturbed import undisturbed
from vitquant.measure.candidates import CandidateSensitivity
from vitquant.measure.profile import measured_stages
from vitquant.numerics.quantized import real
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
        batch_size: images in one forward.
        exact: also run the model with each setting of each point, on the images that are held out.
    """
    stages = measured_stages(model)
    found = CandidateSensitivity(model, stages, candidates, draws=draws)
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
                inputs, rounded = [pixels], pixels
                for stage in stages:
                    with only([], model):
                        inputs.append(real(stage.run(inputs[-1])))
                    with only(list(model.point_modules().values()), model):
                        rounded = stage.run(rounded)
                found.add(inputs)
                if exact and bool(unseen.any()):
                    for name, energies in found.exact([x[unseen.to(x.device)] for x in inputs]).items():
                        before = measured.get(name, [0.0] * len(energies))
                        measured[name] = [a + b for a, b in zip(before, energies, strict=True)]
            signal.append(per_image(inputs[-1]))
            noise.append(per_image(inputs[-1] - real(rounded)))
    points = model.point_modules()
    rows = [(name, c) for name, some in candidates.items() for c in (points[name].require_config(), *some)]
    products = torch.cat([torch.stack(found.products[name]) for name in candidates], dim=-1)
    energies = [e for name in candidates for e in measured[name]] if measured else []
    return Estimates(rows, products.float(), torch.cat(signal), torch.cat(noise), energies)


def per_image(x: Tensor) -> Tensor:
    """Sum of squares of each image, float64 ``[B]``, on the CPU."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.double().square().cpu()
