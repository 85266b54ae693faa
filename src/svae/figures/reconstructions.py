"""What a model makes of images: each one, its reconstruction, and the object without its pose."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from svae.figures.mosaic import (
    HEADER_LINE,
    TEXT_SIZE,
    Array,
    display_range,
    label_rows,
    mosaic,
    mosaic_axes,
    tile_inches,
    to_images,
    to_images_like,
    write_above,
)
from svae.figures.style import file_stem, shortened, signed, text_inches

__all__ = ["MAX_EXAMPLES", "check_names", "reconstruction_figure", "short_names"]

MAX_EXAMPLES = 12
LEFT_INCHES = 1.08


def reconstruction_figure(
    images: Array,
    reconstructions: Array,
    pose_removed: Array,
    theta_deg: Array | None = None,
    shift_px: Array | None = None,
    *,
    title: str | None = None,
    scored: Array | None = None,
    names: Sequence[str] | None = None,
    rows: Sequence[str] = ("input", "reconstruction", "pose removed"),
) -> Figure:
    """Three rows, 'input', 'reconstruction' and 'pose removed'; one column for each example.

    All grey images share one scale, that of the inputs and reconstructions; RGB images are drawn
    as they are, clipped to [0, 1]. The first 12 examples are drawn.

    Arguments:
        images: The inputs, with shape (B, C, H, W), C 1 or 3.
        reconstructions: What the model makes of them, with shape (B, C, H, W).
        pose_removed: The same content upright and centred, with shape (B, C, H, W).
        theta_deg: Inferred angles, written above the columns, with shape (B,).
        shift_px: Inferred centres (x right, y up), written above, with shape (B, 2).
        title: Instead of 'Images and their reconstructions'.
        scored: Which pixels the likelihood scores, bool with shape (H, W). The others are pale
            blue in the reconstructions: nothing was learned there.
        names: File names or labels, written above, B of them.
        rows: What is written beside the three rows.
    """
    inputs = to_images("images", images)
    rebuilt = to_images_like("reconstructions", reconstructions, "images", inputs)
    upright = to_images_like("pose_removed", pose_removed, "images", inputs)
    count, shown = len(inputs), min(len(inputs), MAX_EXAMPLES)
    height, width = inputs.shape[-2:]
    tile = tile_inches(shown, 3, height / width)
    header = _pose_lines(count, shown, theta_deg, shift_px)
    if names is not None:
        header = {"": short_names(check_names(names, count)[:shown], tile)} | header
    hidden = _hidden(scored, height, width)

    grey = display_range(torch.cat((inputs[:shown], rebuilt[:shown])))
    gap = max(1, round(0.06 * width))
    pictures = torch.cat((inputs[:shown], rebuilt[:shown], upright[:shown]))
    masked = torch.zeros(len(pictures), height, width, dtype=torch.bool)
    masked[shown : 2 * shown] = hidden
    if title is None:
        title = "Images and their reconstructions"
        if hidden.any():
            title += " (pale blue: not scored)"
    figure, axes = mosaic_axes(
        mosaic(pictures, shown, grey, gap, masked),
        shown * tile,
        title,
        grey,
        left=LEFT_INCHES,
        top=HEADER_LINE * len(header),
    )
    label_rows(axes, list(rows), height, gap)
    axes.set_xticks([])
    write_above(axes, header, [(width - 1) / 2 + i * (width + gap) for i in range(shown)])
    return figure


def check_names(names: Sequence[str], count: int) -> Sequence[str]:
    """`names`, if there are `count` of them."""
    if len(names) != count:
        raise ValueError(f"names: expected {count} like images, got {len(names)}")
    return names


def short_names(names: Sequence[str], tile: float) -> list[str]:
    """File names or labels, each as long as a column of `tile` inches is wide.

    Of particles such as `000017@stack.mrcs` the number stays whole: it tells them apart.
    """
    short = []
    for name in names:
        start, rest = "", file_stem(str(name))
        number, at, stack = rest.partition("@")
        if at and number.isdecimal():
            start, rest = f"{int(number)}@", stack
        room = 0.9 * tile - text_inches(start, TEXT_SIZE)
        short.append(start + shortened(rest, room, TEXT_SIZE))
    return short


def _hidden(scored: Array | None, height: int, width: int) -> torch.Tensor:
    if scored is None:
        return torch.zeros(height, width, dtype=torch.bool)
    mask = torch.as_tensor(scored).detach().cpu().bool()
    if mask.shape != (height, width):
        raise ValueError(
            f"scored: expected shape {(height, width)} like the images, got {tuple(mask.shape)}"
        )
    return ~mask


def _pose_lines(
    count: int,
    shown: int,
    theta_deg: Array | None,
    shift_px: Array | None,
) -> dict[str, list[str]]:
    """The lines above the pictures, by their labels; one text for each example shown."""
    lines: dict[str, list[str]] = {}
    for name, value, shape in (
        ("theta_deg", theta_deg, (count,)),
        ("shift_px", shift_px, (count, 2)),
    ):
        if value is None:
            continue
        pose = torch.as_tensor(value)
        if pose.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(pose.shape)}")
        if name == "theta_deg":
            lines["θ"] = [f"{signed(angle, 0)}°" for angle in pose[:shown].tolist()]
        else:
            lines["shift x, y (px)"] = [
                f"{signed(x, 1)}, {signed(y, 1)}" for x, y in pose[:shown].tolist()
            ]
    return lines
