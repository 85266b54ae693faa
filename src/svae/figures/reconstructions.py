"""What a model makes of images: each one, its reconstruction, and the object without its pose."""

from functools import partial

import torch
from matplotlib.figure import Figure

from svae.figures.mosaic import Array, display_range, mosaic, mosaic_axes, to_images

__all__ = ["reconstruction_figure"]

MAX_EXAMPLES = 12
COLUMN_INCHES = 0.72
LEFT_INCHES = 1.05
MARGIN_INCHES = 0.08
LINE_INCHES = 0.16


def reconstruction_figure(
    images: Array,
    reconstructions: Array,
    pose_removed: Array,
    theta_deg: Array | None = None,
    shift_px: Array | None = None,
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
    """
    given = {"images": images, "reconstructions": reconstructions, "pose_removed": pose_removed}
    rows = {name: to_images(name, value) for name, value in given.items()}
    for name, value in rows.items():
        if value.shape != rows["images"].shape:
            raise ValueError(
                f"{name}: expected shape {tuple(rows['images'].shape)} like images, "
                f"got {tuple(value.shape)}"
            )
    count = len(rows["images"])
    shown = min(count, MAX_EXAMPLES)
    header = _pose_lines(count, shown, theta_deg, shift_px)
    rows = {name: value[:shown] for name, value in rows.items()}

    black, white = display_range(torch.cat((rows["images"], rows["reconstructions"])))
    height, width = rows["images"].shape[-2:]
    gap = max(1, round(0.06 * width))
    picture = mosaic(torch.cat(tuple(rows.values())), shown, black, white, gap)
    figure, axes = mosaic_axes(
        picture,
        LEFT_INCHES + shown * COLUMN_INCHES + MARGIN_INCHES,
        left=LEFT_INCHES,
        right=MARGIN_INCHES,
        top=MARGIN_INCHES + LINE_INCHES * len(header),
        bottom=MARGIN_INCHES,
    )
    axes.set_yticks(
        [(height - 1) / 2 + row * (height + gap) for row in range(3)],
        labels=["input", "reconstruction", "pose removed"],
    )
    axes.set_xticks([])

    for line, (label, texts) in enumerate(reversed(header.items())):
        # In points above the picture, whatever its height is.
        rise = 4 + 72 * LINE_INCHES * line
        note = partial(axes.annotate, textcoords="offset points", va="baseline")
        note(label, (0, 1), (-4, rise), xycoords="axes fraction", ha="right", fontsize=8)
        for column, text in enumerate(texts):
            centre = (width - 1) / 2 + column * (width + gap)
            anchor, where = (centre, 1), ("data", "axes fraction")
            note(text, anchor, (0, rise), xycoords=where, ha="center", fontsize=7.5)
    return figure


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
            lines["θ"] = [f"{_signed(angle, 0)}°" for angle in pose[:shown].tolist()]
        else:
            lines["shift x, y (px)"] = [
                f"{_signed(x, 1)}, {_signed(y, 1)}" for x, y in pose[:shown].tolist()
            ]
    return lines


def _signed(value: float, digits: int) -> str:
    # `+ 0.0` takes the sign from a rounded minus zero.
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")
