import logging
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from svae.geometry import pixel_size
from svae.metrics import (
    NoClusters,
    cluster,
    clustering_metrics,
    pose_metrics,
    small_upright,
    spectral_clusters,
)
from svae.module import VAEModule


def module_of(model, batch, **options):
    """A module about to be tested on batches like this one, without a trainer."""
    module = VAEModule(model, torch.optim.Adam, lambda optimizer, steps: {}, **options)
    return about_to("test", module, batch)


def about_to(stage, module, batch):
    splits = {"val": batch, "test": batch}
    module.trainer = SimpleNamespace(datamodule=SimpleNamespace(splits=splits), current_epoch=0)
    module.setup(stage)
    return module.eval()


def end_test(module, monkeypatch):
    """The metrics that the end of a test logs, beside the bound."""
    logged = {}
    monkeypatch.setattr(module, "_log_means", lambda split: None)
    monkeypatch.setattr(module, "log_dict", logged.update)
    module.on_test_epoch_end()
    return logged


@pytest.fixture
def batch():
    return {
        "image": torch.rand(40, 1, 9, 9),
        "untransformed": torch.rand(40, 1, 9, 9),
        "index": torch.arange(40),
        "label": torch.arange(40) % 3,
        "theta": torch.rand(40) * 6,
        "shift": torch.randn(40, 2) / 10,
        "symmetry": torch.arange(40) % 2 + 1,
    }


def test_latents_that_are_not_finite_do_not_cost_the_other_results(
    make_model, monkeypatch, caplog
):
    module = module_of(make_model(), {"theta": torch.zeros(3)})
    values = {
        "inferred_z": torch.zeros(3, 2),
        "inferred_theta": torch.tensor([0.0, float("nan"), 1.0]),
        "inferred_shift": torch.zeros(3, 2),
        "inferred_log_scale": torch.zeros(3),
        "log_likelihood": torch.zeros(3),
        "representation": torch.zeros(3, 4),
        "centre": torch.zeros(3, 2),
        "theta": torch.zeros(3),
    }
    module.per_image.update(index=torch.arange(3), **values)
    logged = []
    monkeypatch.setattr(module, "_log_means", logged.append)
    monkeypatch.setattr(module, "log_dict", lambda metrics: pytest.fail(str(metrics)))
    with caplog.at_level(logging.WARNING):
        module.on_test_epoch_end()
    assert logged == ["test"]
    assert "not finite" in caplog.text


def test_a_test_gives_the_metrics_of_what_was_inferred(make_model, batch, monkeypatch):
    """Of two batches, with the angles of the same objects upright, and symmetry."""
    model = make_model()
    module = module_of(model, batch, num_labels=3, iwae_samples=0, seed=4)
    with torch.no_grad():
        for rows in (slice(15), slice(15, None)):
            module.test_step({name: tensor[rows] for name, tensor in batch.items()}, 0)
        q, upright = model.infer(batch["image"]), model.infer(batch["untransformed"])
    metrics = end_test(module, monkeypatch)

    mode, reference = q.mode(), upright.mode().theta
    assert_close(module.inferred.reference_theta, reference)
    assert_close(module.inferred.representation, q.representation())
    assert_close(module.inferred.centre, model.centre(mode))
    clusters = cluster(q.representation(), mode.z, 3, seed=4)
    upright = small_upright(batch["image"], mode)
    clusters["_spectral"] = spectral_clusters(upright, 3, seed=4)
    assert module.clusters.keys() == clusters.keys()
    assert all(torch.equal(module.clusters[suffix], clusters[suffix]) for suffix in clusters)
    pose = pose_metrics(
        *(mode.theta, mode.shift, batch["theta"], batch["shift"], pixel_size(9, 9)),
        *(batch["symmetry"], reference, model.centre(mode)),
    )
    assert {"centre_x_correlation", "centre_y_correlation", "centre_rmse_px"} <= pose.keys()
    expected = pose | clustering_metrics(clusters, batch["label"])
    assert metrics == pytest.approx({f"test/{name}": v for name, v in expected.items()}, abs=1e-5)


def test_clusters_are_made_before_the_labels_are_seen(make_model, batch, monkeypatch):
    found = []
    model = make_model()
    for label in (batch["label"], batch["index"] // 14):
        module = module_of(model, batch, num_labels=3, iwae_samples=0)
        with torch.no_grad():
            module.test_step(batch | {"label": label}, 0)
        found.append((end_test(module, monkeypatch), module.clusters))
    assert found[0][0] != found[1][0]
    assert found[0][1].keys() == {"", "_ward", "_gmm", "_spectral"}
    for suffix, numbers in found[0][1].items():
        assert torch.equal(numbers, found[1][1][suffix])


def test_a_test_goes_on_without_clusters_that_are_not_found(
    make_model, batch, monkeypatch, caplog
):
    def unable(*_):
        raise NoClusters("spectral clustering: no convergence")

    monkeypatch.setattr("svae.module.spectral_clusters", unable)
    module = module_of(make_model(), batch, num_labels=3, iwae_samples=0)
    with torch.no_grad():
        module.test_step(batch, 0)
    with caplog.at_level(logging.WARNING):
        metrics = end_test(module, monkeypatch)
    assert "no convergence; the test goes on" in caplog.text
    assert {"test/clustering_accuracy", "test/theta_error_deg"} <= metrics.keys()
    assert "test/clustering_accuracy_spectral" not in metrics


@pytest.mark.parametrize("missing", ["label", "num_labels", "images", "pair", "z"])
def test_without_enough_to_compare_there_are_no_clusters(make_model, batch, monkeypatch, missing):
    labels = {"num_labels": 0, "pair": 1}.get(missing, 3)
    count = {"images": 2, "pair": 1}.get(missing, 40)
    batch = {name: tensor[:count] for name, tensor in batch.items() if name != missing}
    model = make_model(z_dim=0) if missing == "z" else make_model()
    module = module_of(model, batch, num_labels=labels, iwae_samples=0)
    with torch.no_grad():
        module.test_step(batch, 0)
    metrics = end_test(module, monkeypatch)
    assert module.clusters is None
    assert "test/theta_relative_error_deg" in metrics
    assert not any("clustering" in name for name in metrics)


def test_a_model_without_angles_infers_none_upright(make_model, batch, monkeypatch):
    model = make_model(infer_theta=False)
    module = module_of(model, batch, iwae_samples=0)
    with torch.no_grad():
        module.test_step(batch, 0)
    metrics = end_test(module, monkeypatch)
    assert module.inferred.reference_theta is None
    assert not any("theta" in name for name in metrics)
    assert "test/shift_rmse_px" in metrics
    assert "test/centre_rmse_px" in metrics


def test_a_model_without_shifts_has_no_centres(make_model, batch, monkeypatch):
    module = module_of(make_model(infer_shift=False), batch, iwae_samples=0)
    with torch.no_grad():
        module.test_step(batch, 0)
    metrics = end_test(module, monkeypatch)
    assert module.inferred.centre is None
    assert not any("shift" in name or "centre" in name for name in metrics)
    assert "test/theta_relative_error_deg" in metrics


@pytest.mark.parametrize("infers", [True, False])
def test_sizes_are_compared_where_they_are_inferred_and_known(
    make_model, batch, monkeypatch, infers
):
    module = module_of(
        make_model(infer_scale=infers), batch | {"scale": torch.rand(40) + 0.5}, iwae_samples=0
    )
    batch = batch | {"scale": torch.rand(40) + 0.5}
    with torch.no_grad():
        module.test_step(batch, 0)
    metrics = end_test(module, monkeypatch)
    assert ("test/scale_correlation" in metrics) == infers
    if infers:
        log_scale = module.model.encode(batch["image"]).log_scale
        expected = torch.corrcoef(torch.stack((log_scale, batch["scale"].log())))[0, 1]
        assert metrics["test/scale_correlation"] == pytest.approx(expected.item(), abs=1e-5)
        assert module.inferred.scale.tolist() == batch["scale"].tolist()


def test_only_a_test_finds_centres(make_model, batch, monkeypatch):
    """They cost a decoded image each, and the figures of a validation have no use for them."""
    del batch["untransformed"]
    module = about_to("fit", module_of(make_model(), batch), batch)
    monkeypatch.setattr(module, "_log_means", lambda split: None)
    with torch.no_grad():
        module.validation_step(batch, 0)
    module.on_validation_epoch_end()
    assert module.inferred.centre is None
    assert len(module.inferred) == 40
