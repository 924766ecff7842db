"""The quantized Vision Transformer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vitquant.architectures.quant_block import QuantBlock
from vitquant.architectures.vit import VisionTransformer, ViTSpec, pad_prefix
from vitquant.config import ModelConfig, QuantConfig, ResolvedConfig, point_names
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import DataError, LifecycleError
from vitquant.layers import Mode, Point, QuantLinear, QuantNorm, QuantResidual, points_of, set_mode
from vitquant.layers.layer import Layer, entrance, owned, require_finite
from vitquant.layers.patch import QuantPatchEmbed
from vitquant.layers.regrid import codes_of
from vitquant.layers.usage import using
from vitquant.numerics.affine import QuantParams, dequantize
from vitquant.numerics.mean import rounded_mean


class RangeWarning(UserWarning):
    """Channels that were zero throughout the calibration."""


@dataclass(frozen=True)
class PointInfo:
    """What there is to know about one point: settings, grid, shape (of activations without the batch)."""

    name: str
    config: QuantConfig | None
    active: bool
    params: QuantParams | None
    shape: tuple[int, ...] | None


class QuantViT(Layer):
    """A :class:`VisionTransformer` whose tensors become integers at named points.

    Args:
        vit: the float model. Its tensors are copied: neither model notices what becomes of the other.
        config: settings of all points.
        preprocessing: how pixels become the model's input; its mean and standard deviation are folded into the patch
            embedding.
    """

    def __init__(self, vit: VisionTransformer, config: ModelConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        spec = vit.spec
        self.spec, self.preprocessing = own_spec(spec), own_preprocessing(preprocessing)
        names = point_names(spec.depth, head=bool(spec.num_classes), distilled=vit.head_dist is not None)
        self.config: ResolvedConfig = config.resolve(names)

        def linear(module: nn.Linear, name: str) -> QuantLinear:
            return QuantLinear(module, self.config[f"{name}.output"], self.config[f"{name}.weight"], name)

        self.patch_embed = QuantPatchEmbed(
            vit.patch_embed.proj,
            preprocessing.mean,
            preprocessing.std,
            self.config["patch_embed.output"],
            self.config["patch_embed.weight"],
            "patch_embed",
        )
        self.token_table: Tensor
        self.register_buffer("token_table", owned(vit.token_table()))
        self.pos_embed = QuantResidual("pos_embed", self.config["pos_embed"], head_dim=spec.head_dim)
        self.blocks = nn.ModuleList(
            QuantBlock(block, self.config, prefix=f"blocks.{i}.")  # type: ignore[arg-type]
            for i, block in enumerate(vit.blocks)
        )
        norm = vit.fc_norm if spec.pool == "avg" else vit.norm
        assert isinstance(norm, nn.LayerNorm)  # the other of the two is the identity
        self.final_norm = QuantNorm(norm, self.config["final_norm"], "final_norm", head_dim=spec.head_dim)
        self.head = linear(vit.head, "head") if isinstance(vit.head, nn.Linear) else None
        self.head_dist = linear(vit.head_dist, "head_dist") if vit.head_dist is not None else None
        self.eval()

    # The forward in four steps, so that a profile can start at any block.

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images to the start of the residual stream, ``[B, N, D]``."""
        patches = pad_prefix(self.patch_embed(images, self.pos_embed.addend_grid), self.spec.num_prefix)
        grid = self.patch_embed.linear.output.grid
        return self.pos_embed(patches, self.token_table, grid)  # type: ignore[no-any-return]

    def run_block(self, index: int, x: Tensor) -> Tensor:
        """One block, knowing the grid of the stream that enters it."""
        return self.blocks[index](x, self.stream_grid(index))  # type: ignore[no-any-return]

    def stream_grid(self, index: int) -> QuantParams | None:
        """Grid of the residual stream before block ``index``; before the final norm for ``index == depth``."""
        if index == 0:
            return self.pos_embed.grid
        return self.blocks[index - 1].residual2.grid  # type: ignore[return-value, union-attr]

    def normalize_tokens(self, x: Tensor) -> Tensor:
        """The final norm: tokens ``[B, N, D]``, or with average pooling the pooled ``[B, D]``."""
        if self.spec.pool == "avg":
            return self.final_norm(self.average(x), self.stream_grid(self.spec.depth))  # type: ignore[no-any-return]
        return self.final_norm(x, self.stream_grid(self.spec.depth))  # type: ignore[no-any-return]

    def average(self, x: Tensor) -> Tensor:
        """Mean of the patch tokens, ``[B, D]``; on the stream's grid if that is one for all channels."""
        tokens, grid = x[:, self.spec.num_prefix :], self.stream_grid(self.spec.depth)
        if grid is None or not grid.is_scalar:
            return tokens.mean(dim=1)
        return dequantize(rounded_mean(codes_of(tokens, grid)), grid)

    def classify(self, x: Tensor) -> Tensor:
        """What :meth:`normalize_tokens` gave to logits ``[B, num_classes]``, or pooled features without a head."""
        grid = self.final_norm.grid
        if self.spec.pool == "avg":
            return x if self.head is None else self.head(x, grid)
        if self.head is None:
            return x[:, 0]
        if not self.spec.dist_token:
            return self.head(x[:, 0], grid)  # type: ignore[no-any-return]
        second = self.head if self.head_dist is None else self.head_dist
        return (self.head(x[:, 0], grid) + second(x[:, 1], grid)) / 2  # type: ignore[no-any-return]

    @property
    def label(self) -> str:
        return "images"

    def check_input(self, x: Tensor) -> None:
        """Refuse images that are not as :meth:`Preprocessing.normalize` makes them.

        Raises:
            DataError: another shape, type or device, or no image.
        """
        shape, table = self.preprocessing.shape, self.token_table
        if tuple(x.shape[1:]) == shape and x.dtype == table.dtype and x.device == table.device and len(x):
            return
        kinds = (x.dtype, x.device), (table.dtype, table.device)
        got, expected = (f"{str(dtype).removeprefix('torch.')} on {device}" for dtype, device in kinds)
        raise DataError(
            "images that the model does not take",
            where="images",
            got=f"{got}, {list(x.shape)}",
            expected=f"{expected}, [N, {', '.join(map(str, shape))}], at least one image",
            fix="make them from uint8 pixels of this size with model.preprocessing.normalize"
            + ("" if table.dtype == torch.float32 else " and .to(model.dtype)"),
        )

    @entrance
    def forward_features(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` to the final norm."""
        x = self.embed(images)
        for index in range(self.spec.depth):
            x = self.run_block(index, x)
        return self.normalize_tokens(x)

    @entrance
    def forward(self, images: Tensor) -> Tensor:
        """Normalised images ``[B, C, H, W]`` to logits ``[B, num_classes]``, or pooled features without a head.

        No gradients are recorded, and autocast does not apply.

        Raises:
            DataError: images of another shape or type, or normalised in another way.
            NumericsError: NaN or Inf in the images, or in what came out.
            LifecycleError: an active point was never observed, or another thread calibrates the model.
            OutOfMemoryError: naming the point at which memory ran out.
        """
        y = self.classify(self.forward_features(images))
        if not y.is_meta:
            require_finite(y, "output", "the model's output is not finite", "check the images and the weights")
        return y

    # Points and their life.

    def points(self) -> list[PointInfo]:
        """Every point in the order of computation, with its config, parameters and shape."""
        return [PointInfo(p.name, p.config, p.active, p.params, p.shape) for p in self.point_modules().values()]

    def point_modules(self) -> dict[str, Point]:
        """The points themselves, by name, in the order of computation."""
        found = {p.name: p for p in points_of(self)}
        return {name: found[name] for name in self.config}

    @property
    def mode(self) -> Mode:
        """The mode that the points are in."""
        return self.pos_embed.mode

    def set_mode(self, mode: Mode) -> None:
        """Put all points into one mode.

        Raises:
            LifecycleError: ``QUANTIZED``, and an active point was never observed.
        """
        if mode is Mode.QUANTIZED:
            self.require_calibrated()
        set_mode(self, mode)

    def require_calibrated(self) -> None:
        """Refuse to go on while an active point has no grid.

        Raises:
            LifecycleError: naming the first such point, and how many there are.
        """
        with using(self.points_inside()):  # not while another thread calibrates
            modules = self.point_modules().values()
        blank = [p.name for p in modules if p.active and p.observes and p.params is None]
        if blank:
            more = f" (and {len(blank) - 1} more points)" if len(blank) > 1 else ""
            raise LifecycleError(
                f"no statistics for {blank[0]}{more}",
                expected="a calibration that reaches every active point",
                fix="call vitquant.calibrate(model, images) first, or set output_quant_enable: false for these points",
            )

    def finish(self) -> None:
        """Turn the statistics of a calibration into grids, and fold them into the weights.

        Warns:
            RangeWarning: once, with count and layers, if channels were zero throughout.
        """
        self.pos_embed.finish()
        self.patch_embed.linear.output.finish()
        for block in self.blocks:
            block.finish()  # type: ignore[operator]
        self.final_norm.finish()
        for head in self.heads():
            head.fold(self.final_norm.params)
            head.output.finish()
        flat = {p.name: p.no_range for p in self.point_modules().values() if p.no_range}
        if flat:
            warnings.warn(no_range_message(flat), RangeWarning, stacklevel=3)

    def heads(self) -> Iterator[QuantLinear]:
        """The classification heads: none, one, or DeiT's two."""
        return (head for head in (self.head, self.head_dist) if head is not None)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in: float32, or float64 after ``model.double()``."""
        return self.token_table.dtype

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.token_table.device


def own_spec(given: ViTSpec) -> ViTSpec:
    """The same values, none of which the caller can change, should they be lists."""
    return replace(given, img_size=pair(given.img_size), patch_size=pair(given.patch_size))


def own_preprocessing(given: Preprocessing) -> Preprocessing:
    """The same for images."""
    return replace(given, img_size=pair(given.img_size), mean=tuple(given.mean), std=tuple(given.std))


def pair(size: Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    height, width = size
    return height, width


def no_range_message(channels: Mapping[str, int]) -> str:
    """What the warning says: how many channels had no range, by the name of their point.

    >>> no_range_message({"head.weight": 1})
    '1 channel had no range during calibration, at 1 point (head.weight); its scale is 1 and it stays exactly 0'
    """
    count, points = sum(channels.values()), len(channels)
    names = ", ".join(list(channels)[:5]) + (", ..." if points > 5 else "")
    end = "its scale is 1 and it stays exactly 0" if count == 1 else "their scale is 1 and they stay exactly 0"
    subject, places = (f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in ((count, "channel"), (points, "point")))
    return f"{subject} had no range during calibration, at {places} ({names}); {end}"
