import math

import pytest
import torch
from torch.testing import assert_close

from svae.generators import CoordinateMLP
from svae.geometry import (
    pixel_grid,
    pixel_size,
    remove_pose,
    rotate,
    rotate_image,
    to_object_frame,
    transform_image,
    wrap_angle,
)
from svae.latents import Latents


def image_with(*pixels: tuple[int, int], size: int = 9) -> torch.Tensor:
    image = torch.zeros(1, 1, size, size, dtype=torch.float64)
    for row, column in pixels:
        image[0, 0, row, column] = 1
    return image


def test_row_zero_is_the_top_and_corners_are_at_one():
    grid = pixel_grid(5, 5).reshape(5, 5, 2)
    assert grid[0, 0].tolist() == [-1, 1]
    assert grid[0, 4].tolist() == [1, 1]
    assert grid[4, 0].tolist() == [-1, -1]
    assert grid[2, 2].tolist() == [0, 0]


@pytest.mark.parametrize(("height", "width"), [(3, 7), (7, 3), (6, 4), (1, 5), (28, 28)])
def test_rectangles_share_one_scale(height, width):
    grid = pixel_grid(height, width).reshape(height, width, 2)
    assert grid.abs().max() == 1
    assert_close(grid.mean((0, 1)), torch.zeros(2, dtype=torch.float64))
    step = pixel_size(height, width)
    if width > 1:
        assert_close(grid[:, 1:, 0] - grid[:, :-1, 0], torch.full_like(grid[:, 1:, 0], step))
    if height > 1:
        assert_close(grid[:-1, :, 1] - grid[1:, :, 1], torch.full_like(grid[1:, :, 1], step))


def test_an_image_of_one_pixel_is_refused():
    with pytest.raises(ValueError, match="1x1"):
        pixel_size(1, 1)


def test_a_quarter_turn_takes_x_to_y():
    quarter = torch.tensor(math.pi / 2, dtype=torch.float64)
    x_axis = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert_close(rotate(x_axis, quarter), torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_a_delta_turns_counter_clockwise():
    # Right of the centre; a quarter turn counter-clockwise brings it to the top (a smaller row).
    image = image_with((4, 7))
    turned = rotate_image(image, torch.tensor([math.pi / 2], dtype=torch.float64))
    assert_close(turned, image_with((1, 4)), atol=1e-12, rtol=0)


def test_a_delta_moves_right_and_up():
    step = pixel_size(9, 9)
    shift = torch.tensor([[2 * step, 3 * step]], dtype=torch.float64)
    moved = transform_image(image_with((4, 4)), torch.zeros(1), shift)
    assert_close(moved, image_with((1, 6)), atol=1e-12, rtol=0)


def test_an_object_is_turned_before_it_is_moved():
    step = pixel_size(9, 9)
    theta = torch.tensor([math.pi / 2], dtype=torch.float64)
    shift = torch.tensor([[step, 0.0]], dtype=torch.float64)
    # Two right of the centre: turned to two above, then one to the right.
    posed = transform_image(image_with((4, 6)), theta, shift)
    assert_close(posed, image_with((2, 5)), atol=1e-12, rtol=0)


def blobs(count: int, height: int, width: int) -> torch.Tensor:
    """Smooth objects without symmetry, near the centre."""
    grid = pixel_grid(height, width).unsqueeze(0)
    centres = torch.tensor([[0.25, 0.05], [-0.1, 0.2], [0.0, -0.2]], dtype=torch.float64)
    weights = torch.rand(count, 3, 1, dtype=torch.float64) + 0.5
    distance = (grid - centres.unsqueeze(1)).square().sum(-1)
    pixels = (weights * torch.exp(-distance / 0.02)).sum(1)
    return pixels.reshape(count, 1, height, width)


@pytest.mark.parametrize(("height", "width"), [(65, 65), (48, 65), (64, 49)])
def test_a_pose_that_is_removed_is_gone(height, width):
    images = blobs(8, height, width)
    theta = (torch.rand(8, dtype=torch.float64) * 2 - 1) * math.pi
    shift = (torch.rand(8, 2, dtype=torch.float64) * 2 - 1) * 0.2
    posed = transform_image(images, theta, shift)
    error = (remove_pose(posed, theta, shift) - images).abs().amax((1, 2, 3))
    changed = (posed - images).abs().amax((1, 2, 3))
    assert error.max() < 0.05 * images.max()  # two bilinear interpolations
    assert (changed > 5 * error).all()


def test_removing_a_pose_is_exact_for_whole_pixels_and_quarter_turns():
    step = pixel_size(9, 9)
    image = image_with((4, 6), (4, 4))
    pose = torch.tensor([math.pi / 2]), torch.tensor([[2 * step, -step]], dtype=torch.float64)
    assert_close(remove_pose(transform_image(image, *pose), *pose), image, atol=1e-6, rtol=0)


def test_rectangular_images_turn_without_distortion():
    image = torch.zeros(1, 1, 5, 9, dtype=torch.float64)
    image[0, 0, 2, 6] = 1  # two pixels right of the centre
    turned = rotate_image(image, torch.tensor([math.pi / 2], dtype=torch.float64))
    expected = torch.zeros_like(image)
    expected[0, 0, 0, 4] = 1  # two pixels above it
    assert_close(turned, expected, atol=1e-12, rtol=0)


def test_object_frame_undoes_the_pose():
    points = torch.randn(4, 11, 2, dtype=torch.float64)
    theta, shift = torch.randn(4, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    posed = rotate(points, theta.unsqueeze(-1)) + shift.unsqueeze(1)
    assert_close(to_object_frame(posed, theta, shift), points)


def test_the_object_centre_lies_at_the_shift():
    theta, shift = torch.randn(6), torch.randn(6, 2)
    assert_close(to_object_frame(shift.unsqueeze(1), theta, shift), torch.zeros(6, 1, 2))


def test_turning_an_image_turns_angle_and_shift():
    """An input turned by gamma has the pose (theta + gamma, R(gamma) shift)."""
    theta, gamma = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    shift = torch.randn(5, 2, dtype=torch.float64)
    pose = Latents(torch.zeros(5, 0), theta, shift).turned(gamma)
    coords = torch.randn(5, 7, 2, dtype=torch.float64)
    # The turned image at a coordinate is the image at the coordinate turned back.
    expected = to_object_frame(rotate(coords, -gamma.unsqueeze(-1)), theta, shift)
    assert_close(to_object_frame(coords, pose.theta, pose.shift), expected)


def test_the_papers_decoders_are_ours_at_mapped_latents():
    """spatial-VAE: x R(t) + d with t = -theta, d = -R(-theta) shift; TARGET-VAE: (x - d) R(t)."""
    generator = CoordinateMLP((1, 8, 8), 2, 1, hidden=32).double()
    generator.from_coords.weight.data *= 3
    coords = pixel_grid(8, 8)
    z, theta = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    shift = torch.randn(5, 2, dtype=torch.float64)
    ours = generator(to_object_frame(coords, theta, shift), z)
    for image, (angle, (dx, dy)) in enumerate(zip(-theta, shift, strict=True)):
        c, s = torch.cos(angle), torch.sin(angle)
        rotation = torch.stack([torch.stack([c, s]), torch.stack([-s, c])])  # as both print it
        # -R(-theta) shift, with the matrix of this project's page written out at -theta = angle.
        displacement = -torch.stack([c * dx - s * dy, s * dx + c * dy])
        spatial_vae = generator((coords @ rotation + displacement)[None], z[image, None])
        target_vae = generator(((coords - shift[image]) @ rotation)[None], z[image, None])
        assert_close(spatial_vae[0], ours[image])
        assert_close(target_vae[0], ours[image])


def test_wrapped_angles_are_the_same_angles():
    theta = torch.linspace(-20, 20, 101, dtype=torch.float64)
    wrapped = wrap_angle(theta)
    assert wrapped.min() >= -math.pi
    assert wrapped.max() < math.pi
    assert_close(torch.cos(wrapped), torch.cos(theta))
    assert_close(torch.sin(wrapped), torch.sin(theta))
