"""Latents as tables: names, units and files."""

import csv
import math

import numpy as np
import pytest
import torch

from svae.inferred import Inferred
from svae.latents import Latents
from svae.tables import latent_columns, write_csv, write_npz

PRIORS = ["z", "theta", "shift"]


def inferred(theta, z_dim=1, **truth):
    count = len(theta)
    latents = Latents(
        torch.arange(count * z_dim).float().reshape(count, z_dim),
        torch.as_tensor(theta),
        torch.tensor([[0.2, -0.1]]).repeat(count, 1),
    )
    return Inferred(torch.arange(count), latents, -torch.arange(count).float(), **truth)


def angles_of(theta):
    return latent_columns(inferred(torch.tensor(theta)), PRIORS, 0.1)["theta_deg"]


def test_angles_are_degrees_from_minus_180_to_below_180(tmp_path):
    pi = torch.tensor(math.pi)
    exact = [0.0, math.pi / 2, -math.pi / 2, 7 * math.pi / 6, -3 * math.pi, 2 * math.pi]
    expected = np.array([0, 90, -90, -150, -180, 0], np.float32)
    np.testing.assert_allclose(angles_of(exact), expected, atol=1e-4)
    up, down = torch.tensor(9.0), torch.tensor(-9.0)
    near = [torch.nextafter(sign * pi, way) for sign in (-1, 1) for way in (up, down)]
    near += [pi, -pi, torch.tensor(-3.1415930), torch.tensor(3 * math.pi - 1e-7)]
    degrees = angles_of([value.item() for value in near])
    assert degrees.min() >= -180
    assert degrees.max() < 180
    write_csv(tmp_path / "a.csv", {"theta_deg": degrees})
    written = [float(line) for line in (tmp_path / "a.csv").read_text().split()[1:]]
    assert max(written) < 180
    assert abs(np.abs(degrees) - 180).max() < 1e-3


def test_shifts_are_pixels_and_deviations_have_the_units_of_their_value():
    std = Latents(torch.full((2, 1), 0.5), torch.full((2,), math.pi / 4), torch.full((2, 2), 0.3))
    columns = latent_columns(inferred([0.0, 1.0]), PRIORS, 0.1, uncertainty=std)
    np.testing.assert_allclose(columns["shift_x_px"], [2, 2], rtol=1e-6)
    np.testing.assert_allclose(columns["shift_y_px"], [-1, -1], rtol=1e-6)
    np.testing.assert_allclose(columns["shift_y_std_px"], [3, 3], rtol=1e-6)
    np.testing.assert_allclose(columns["theta_std_deg"], [45, 45], rtol=1e-6)
    np.testing.assert_allclose(columns["z0_std"], [0.5, 0.5])


def test_sizes_are_factors_where_they_are_inferred():
    found = inferred([0.0, 1.0])
    found.latents.log_scale[1] = math.log(2)
    std = found.latents.map(lambda value: torch.full_like(value, 0.1))
    columns = latent_columns(found, [*PRIORS, "scale"], 0.1, uncertainty=std)
    np.testing.assert_allclose(columns["scale"], [1, 2], rtol=1e-6)
    np.testing.assert_allclose(columns["scale_std"], [0.1, 0.2], rtol=1e-6)
    assert list(columns)[-4:] == ["shift_y_std_px", "scale", "scale_std", "log_likelihood"]
    assert "scale" not in latent_columns(found, PRIORS, 0.1)


def test_centres_are_pixels_beside_the_shifts_and_have_no_deviation(tmp_path):
    centre = torch.tensor([[0.3, -0.4], [-0.1, 0.05]])
    found = inferred([0.0, 1.0], centre=centre)
    columns = latent_columns(found, PRIORS, 0.1, uncertainty=found.latents)
    np.testing.assert_allclose(columns["centre_x_px"], [3, -1], rtol=1e-6)
    np.testing.assert_allclose(columns["centre_y_px"], [-4, 0.5], rtol=1e-6)
    np.testing.assert_allclose(columns["shift_x_px"], [2, 2], rtol=1e-6)
    order = ["shift_y_px", "shift_y_std_px", "centre_x_px", "centre_y_px", "log_likelihood"]
    assert list(columns)[-5:] == order
    write_npz(tmp_path / "t.npz", columns)
    with np.load(tmp_path / "t.npz", allow_pickle=False) as archive:
        np.testing.assert_allclose(archive["centre_px"], [[3, -4], [-1, 0.5]], rtol=1e-6)
        assert {name for name in archive if "centre" in name} == {"centre_px"}


def test_without_centres_there_are_no_columns_of_them(tmp_path):
    columns = latent_columns(inferred([0.0, 1.0]), PRIORS, 0.1)
    assert not any("centre" in name for name in columns)
    write_npz(tmp_path / "t.npz", columns)
    with np.load(tmp_path / "t.npz", allow_pickle=False) as archive:
        assert not any("centre" in name for name in archive)


def test_names_of_files_and_labels_are_found_by_index_and_number():
    found = inferred([0.0, 0.0, 0.0], label=torch.tensor([1, 0, 1]))
    turned = found[torch.tensor([2, 0])]
    columns = latent_columns(
        turned, ["z"], 0.1, file_names=["a.png", "b.png", "c.png"], label_names=["cat", "dog"]
    )
    assert columns["file"].tolist() == ["c.png", "a.png"]
    assert columns["label"].tolist() == ["dog", "dog"]
    assert columns["index"].tolist() == [2, 0]
    assert list(columns) == ["index", "file", "label", "z0", "log_likelihood"]
    assert latent_columns(found, ["z"], 0.1)["label"].tolist() == [1, 0, 1]


@pytest.mark.parametrize("z_dim", [0, 1, 12])
def test_components_are_put_together_in_their_order(tmp_path, z_dim):
    found = inferred([0.0, 0.5, 1.0], z_dim)
    columns = latent_columns(found, PRIORS, 0.1, uncertainty=found.latents)
    write_npz(tmp_path / "t.npz", columns)
    with np.load(tmp_path / "t.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    assert ("z" in arrays) == ("z_std" in arrays) == bool(z_dim)
    if z_dim:
        np.testing.assert_array_equal(arrays["z"], found.latents.z)
        np.testing.assert_array_equal(arrays["z_std"], found.latents.z)
    assert arrays["shift_px"].shape == (3, 2)
    np.testing.assert_allclose(arrays["shift_px"][0], [2, -1], rtol=1e-6)


def test_arrays_keep_their_shape_and_any_name(tmp_path):
    arrays = {"z": np.zeros((3, 2)), "file": np.array(["ä.png"] * 3), "images": np.ones((3, 1, 4))}
    write_npz(tmp_path / "t.npz", arrays)
    with np.load(tmp_path / "t.npz", allow_pickle=False) as archive:
        assert {name: array.shape for name, array in archive.items()} == {
            name: array.shape for name, array in arrays.items()
        }
        assert archive["file"].tolist() == ["ä.png"] * 3


def test_a_csv_gives_back_every_bit_and_awkward_names(tmp_path):
    numbers = torch.randn(200) * 10.0 ** torch.randint(-20, 20, (200,))
    values = np.append(numbers.numpy(), np.float32([0.1, 1 / 3, 16777217, np.inf, -0.0]))
    names = np.array([f'a "{i}", b\n.png' for i in range(len(values))])
    write_csv(tmp_path / "t.csv", {"file": names, "value": values, "index": np.arange(205)})
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_array_equal(np.array([row["value"] for row in rows], np.float32), values)
    assert [row["file"] for row in rows] == names.tolist()
    assert rows[7]["index"] == "7"


def test_columns_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        write_csv(tmp_path / "t.csv", {"a": np.arange(3), "b": np.arange(2)})
    assert not (tmp_path / "t.csv").exists()
