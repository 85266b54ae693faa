import math

import pytest
import torch
from scipy import ndimage
from torch.testing import assert_close

from svae.generators import CoordinateMLP
from svae.geometry import (
    centre_of_mass,
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


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("height", "width"), [(65, 65), (48, 65), (64, 49)])
def test_a_pose_that_is_removed_is_gone(height, width, sized):
    images = blobs(8, height, width)
    theta = (torch.rand(8, dtype=torch.float64) * 2 - 1) * math.pi
    shift = (torch.rand(8, 2, dtype=torch.float64) * 2 - 1) * 0.2
    log_scale = torch.linspace(-0.2, 0.3, 8, dtype=torch.float64) if sized else None
    posed = transform_image(images, theta, shift, log_scale)
    error = (remove_pose(posed, theta, shift, log_scale) - images).abs().amax((1, 2, 3))
    changed = (posed - images).abs().amax((1, 2, 3))
    bound = 0.08 if sized else 0.05  # two bilinear interpolations, of coarser pixels if smaller
    assert error.max() < bound * images.max()
    assert (changed > 5 * error).all()


def test_removing_a_pose_is_exact_for_whole_pixels_and_quarter_turns():
    step = pixel_size(9, 9)
    image = image_with((4, 6), (4, 4))
    pose = torch.tensor([math.pi / 2]), torch.tensor([[2 * step, -step]], dtype=torch.float64)
    assert_close(remove_pose(transform_image(image, *pose), *pose), image, atol=1e-6, rtol=0)


def test_a_size_moves_away_from_the_shift_and_not_from_the_middle():
    """Twice as large: two pixels right of the centre become four, then one up."""
    step = pixel_size(9, 9)
    pose = torch.zeros(1), torch.tensor([[0.0, step]]), torch.tensor([math.log(2)])
    image = transform_image(image_with((4, 6)), *pose)
    assert image[0, 0, 3, 8] == pytest.approx(1, abs=1e-6)
    assert_close(image[0, 0, 3, 7], torch.tensor(0.5, dtype=torch.float64))
    assert image[0, 0, 4, 8] == pytest.approx(0.5, abs=1e-6)
    # Every pixel of the object is one of the image, so that nothing is lost.
    assert_close(remove_pose(image, *pose), image_with((4, 6)), atol=1e-6, rtol=0)


def test_an_image_is_what_scipy_makes_of_the_object():
    """In its own pixels, rows downwards: both interpolate bilinearly, with zeros around."""
    images = torch.rand(5, 1, 15, 15, dtype=torch.float64)
    theta, shift_px = torch.randn(5).double(), 3 * torch.randn(5, 2).double()
    log_scale = torch.linspace(-0.6, 0.6, 5).double()
    found = transform_image(images, theta, shift_px * pixel_size(15, 15), log_scale)
    for i, s in enumerate(log_scale.exp().tolist()):
        cos, sin = math.cos(theta[i]), math.sin(theta[i])
        matrix = torch.tensor([[cos, sin], [-sin, cos]]).numpy() / s
        x, y = shift_px[i].tolist()
        centre = torch.tensor([7.0, 7.0]).numpy()
        offset = centre - matrix @ (centre + torch.tensor([-y, x]).numpy())
        expected = ndimage.affine_transform(
            images[i, 0].numpy(), matrix, offset, order=1, mode="grid-constant"
        )
        assert_close(found[i, 0], torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_a_size_divides_the_object_frame():
    """As complex numbers: (x - shift) exp(-i theta) / s."""
    coords, theta = torch.randn(4, 11, 2).double(), torch.randn(4).double()
    shift, log_scale = torch.randn(4, 2).double(), torch.randn(4).double()
    moved = torch.view_as_complex(coords) - torch.view_as_complex(shift)[:, None]
    expected = moved * torch.exp(-1j * theta - log_scale)[:, None]
    found = to_object_frame(coords, theta, shift, log_scale)
    assert_close(found, torch.view_as_real(expected))


def test_size_one_is_no_size_to_the_last_bit():
    images, theta, shift = torch.rand(3, 2, 8, 9), torch.randn(3), torch.randn(3, 2)
    one = torch.zeros(3)
    for function in (transform_image, remove_pose):
        assert torch.equal(function(images, theta, shift, one), function(images, theta, shift))
    coords = torch.randn(3, 7, 2)
    expected = to_object_frame(coords, theta, shift)
    assert torch.equal(to_object_frame(coords, theta, shift, one), expected)


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
    upright = Latents(torch.zeros(5, 0), theta, shift, torch.randn(5, dtype=torch.float64))
    coords = torch.randn(5, 7, 2, dtype=torch.float64)
    # The turned image at a coordinate is the image at the coordinate turned back.
    expected = to_object_frame(rotate(coords, -gamma.unsqueeze(-1)), *upright.pose)
    assert_close(to_object_frame(coords, *upright.turned(gamma).pose), expected)


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


def pixels_from_the_middle(*places: tuple[float, float], size: int = 9) -> torch.Tensor:
    """Points (x right, y up) in grid units."""
    return torch.tensor(places, dtype=torch.float64) * pixel_size(size, size)


def test_the_mass_of_a_pixel_lies_at_it():
    centre = centre_of_mass(image_with((1, 6)))
    assert_close(centre, pixels_from_the_middle((2, 3)))


def test_a_centre_of_mass_is_the_mean_weighted_by_brightness():
    image = image_with((4, 6), (0, 2))
    assert_close(centre_of_mass(image), pixels_from_the_middle((0, 2)))
    image[0, 0, 0, 2] = 3
    assert_close(centre_of_mass(image), pixels_from_the_middle((-1, 3)))


@pytest.mark.parametrize(
    ("height", "width", "row", "column", "expected"),
    [(5, 9, 0, 7, (0.75, 0.5)), (9, 5, 8, 0, (-0.5, -1.0)), (4, 6, 3, 5, (1.0, -0.6))],
)
def test_centres_of_mass_of_rectangles(height, width, row, column, expected):
    image = torch.zeros(1, 1, height, width, dtype=torch.float64)
    image[0, 0, row, column] = 1
    assert_close(centre_of_mass(image), torch.tensor([expected], dtype=torch.float64))


def test_all_channels_have_mass_and_each_its_own_background():
    image = torch.cat((image_with((4, 8)), image_with((4, 4)), image_with((1, 4))), dim=1)
    expected = pixels_from_the_middle((4 / 3, 1))
    assert_close(centre_of_mass(image), expected)
    background = torch.tensor([0.2, 5.0, -3.0], dtype=torch.float64).reshape(3, 1, 1)
    sign = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64).reshape(3, 1, 1)
    assert_close(centre_of_mass(background + sign * image), expected)


def test_dark_and_bright_in_a_place_do_not_cancel():
    image = torch.cat((image_with((0, 4)), -image_with((0, 4)), image_with((8, 4))), dim=1)
    assert_close(centre_of_mass(image), pixels_from_the_middle((0, 4 / 3)))


@pytest.mark.parametrize(("scale", "offset"), [(-1.0, 1.0), (300.0, 7000.0), (1e-6, 0.0)])
def test_a_centre_of_mass_needs_no_certain_brightness(scale, offset):
    """Not even an object brighter than its background."""
    image = image_with((1, 6), (1, 7), (2, 6))
    centre = centre_of_mass(scale * image + offset)
    assert_close(centre, centre_of_mass(image))
    assert_close(centre, pixels_from_the_middle((7 / 3, 8 / 3)))


def test_faint_noise_has_no_mass():
    noise = 0.09 * (torch.rand(5, 1, 9, 9, dtype=torch.float64) - 0.5)
    image = torch.where(image_with((1, 6)) > 0, 1.0, noise)
    assert_close(centre_of_mass(image), pixels_from_the_middle((2, 3)).expand(5, 2))


def test_what_is_not_faint_has_mass():
    image = image_with((4, 4))
    image[0, 0, 4, 8] = 0.25
    assert_close(centre_of_mass(image), pixels_from_the_middle((0.8, 0)))


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0, 1e30])
def test_the_centre_of_a_blank_image_is_the_middle(value):
    blank = torch.full((1, 3, 5, 8), value)
    assert torch.equal(centre_of_mass(blank), torch.zeros(1, 2))


def test_each_image_has_its_own_centre_of_mass():
    """A background, a faintness and a blank of one image say nothing of another."""
    images = torch.cat((100 * image_with((4, 6)), torch.ones(1, 1, 9, 9), image_with((3, 4)) + 5))
    assert_close(centre_of_mass(images), pixels_from_the_middle((2, 0), (0, 0), (0, 1)))


def test_wrapped_angles_are_the_same_angles():
    theta = torch.linspace(-20, 20, 101, dtype=torch.float64)
    wrapped = wrap_angle(theta)
    assert wrapped.min() >= -math.pi
    assert wrapped.max() < math.pi
    assert_close(torch.cos(wrapped), torch.cos(theta))
    assert_close(torch.sin(wrapped), torch.sin(theta))
