"""A small convolutional network, for images that are one array feature."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

from torch import Tensor, nn

from sisa.config import Recipe
from sisa.errors import ConfigurationError
from sisa.learners.records import Encoding
from sisa.learners.torch_module import TorchLearner

SIDES = ("height", "width", "channels")


def load(recipe: Recipe) -> TorchLearner:
    """The learner of a recipe.

    Raises:
        ConfigurationError: The features are not one image, or torch has no such optimizer or loss.
    """
    encoding = Encoding.of(recipe.data)
    images, others = encoding.features("array"), len(encoding.columns.features)
    if len(images) != 1 or others != 1:
        names = ", ".join(f"{n}: {kind}" for n, kind in sorted(recipe.data.features.items()))
        raise ConfigurationError(
            f"The learner cnn needs one array feature and no other, but there are {names}.",
            "Declare one image in recipe.data.features, or use another learner.",
        )
    return TorchLearner.of(recipe, factory)


def factory(
    inputs: int,
    outputs: int,
    height: int | None = None,
    width: int | None = None,
    channels: int | None = None,
    widths: Sequence[int] = (16, 32),
    dense: int = 128,
) -> nn.Module:
    """Convolutions that halve the image, each with a ReLU, then a hidden layer and the output.

    Args:
        inputs: Elements of an image, in the order height, width, channels.
        outputs: Classes, or 1 for a regression.
        height: Rows of pixels; by default images are square.
        width: Pixels of a row.
        channels: Values of a pixel, by default 1 or what height and width leave.
        widths: Channels of each 3 x 3 convolution of stride 2.
        dense: Width of the hidden layer; 0 for none.

    Returns:
        A module from float32 [B, inputs] to float32 [B, outputs].

    Raises:
        ConfigurationError: A parameter is out of its range, or does not fit the images.
    """
    sides = {"height": height, "width": width, "channels": channels}
    for name, value in sides.items():
        if value is not None and not _positive(value):
            raise _wrong(name, value, "a positive integer")
    if not isinstance(widths, Sequence) or not widths or not all(map(_positive, widths)):
        raise _wrong("widths", widths, "a list of positive integers")
    if not (_positive(dense) or (type(dense) is int and dense == 0)):
        raise _wrong("dense", dense, "an integer from 0 on")
    rows, columns, depth = shape(inputs, height, width, channels)
    layers: list[nn.Module] = [Image(rows, columns, depth)]
    for wide in widths:
        layers += [nn.Conv2d(depth, wide, 3, stride=2, padding=1), nn.ReLU()]
        rows, columns, depth = (rows + 1) // 2, (columns + 1) // 2, wide
    layers.append(nn.Flatten())
    size = rows * columns * depth
    if dense:
        layers += [nn.Linear(size, dense), nn.ReLU()]
        size = dense
    return nn.Sequential(*layers, nn.Linear(size, outputs))


class Image(nn.Module):
    """From [B, height * width * channels] to [B, channels, height, width]."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        super().__init__()
        self.shape = (height, width, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The same values, channels first."""
        return x.reshape(-1, *self.shape).permute(0, 3, 1, 2).contiguous()


def shape(
    size: int, height: int | None, width: int | None, channels: int | None
) -> tuple[int, int, int]:
    """Height, width and channels of images; what is None is inferred where there is one answer.

    Raises:
        ConfigurationError: The images have not this many elements, or more must be said.
    """
    if height is None and width is None:
        depth = channels or 1
        height = width = isqrt(size // depth)
    elif height is None or width is None:
        depth = channels or 1
        side = size // (depth * (height or width or 1))
        height, width = height or side, width or side
    else:
        depth = channels or size // (height * width)
    if depth < 1 or height * width * depth != size:
        said = f"{height} x {width} x {depth}" if height * width * depth else "such a shape"
        raise ConfigurationError(
            f"The images have {size} elements, which is not {said}.",
            f"Set {', '.join(SIDES)} in learner.params.",
        )
    return height, width, depth


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _wrong(name: str, value: object, wanted: str) -> ConfigurationError:
    return ConfigurationError(
        f"learner.params.{name} of cnn is {value!r}.", f"It must be {wanted}."
    )
