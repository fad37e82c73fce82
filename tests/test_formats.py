"""Every published layout: recognised by one format, read whole, and equal to its authors' features."""

import dataclasses
import shutil

import numpy as np
import pytest
import rebuild
import torch
from PIL import Image

from ssl_kd.checkpoint import inspect, load_teacher
from ssl_kd.encoder import Preprocessing
from ssl_kd.formats import FORMATS, dino, plain, resnets, simclr, swav

MANIFESTS = rebuild.manifests()
# Several seconds each on two slow cores, where the others take about one: behind the slow marker with the heavy ones.
LARGE = {"mocov3_vitb16", "torchvision_vitb16", "simclr_v1_r50_2x", "swav_r50w2", "timm_vits14_reg4_dinov2"}


def marked(names):
    slow = [n for n in names if MANIFESTS[n].get("heavy") or n in LARGE]
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


CASES = marked([name for name in MANIFESTS if rebuild.expected(name)])


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(name, manifest, path of the file, what load_teacher makes of it); the file is gone after its tests."""
    folder = tmp_path_factory.mktemp("golden")
    manifest = MANIFESTS[request.param]
    path = rebuild.write(manifest, folder)
    yield request.param, manifest, path, load_teacher(path)
    shutil.rmtree(folder)


def differences(name, manifest, encoder, sizes):
    """Feature and size -> (largest error, limit), for all recorded features at these input sizes."""
    out = {}
    recorded = rebuild.expected(name)
    for height, width in sizes:
        suffix = f"@{height}x{width}"
        references = {key.removesuffix(suffix): value for key, value in recorded.items() if key.endswith(suffix)}
        x = rebuild.batch(manifest, (height, width))
        with torch.no_grad():
            found = encoder.embeddings(x * encoder.std + encoder.mean, list(references))
        for feature, reference in references.items():
            assert found[feature].shape == reference.shape
            error = float(np.abs(found[feature].numpy() - reference).max())
            out[f"{feature}{suffix}"] = (error, rebuild.limit(reference))
    return out


def sizes_by_area(manifest):
    return sorted((tuple(shape[2:]) for shape in manifest["inputs"]), key=np.prod)


def test_features_are_the_authors(case):
    name, manifest, _, encoder = case
    found = differences(name, manifest, encoder, sizes_by_area(manifest)[:1])
    assert found
    assert {key: error for key, (error, most) in found.items() if error > most} == {}


@pytest.mark.slow
def test_features_are_the_authors_at_larger_sizes(case):
    name, manifest, _, encoder = case
    found = differences(name, manifest, encoder, sizes_by_area(manifest)[1:])
    assert len(found) < len(rebuild.expected(name))  # the smallest size is another test's
    assert {key: error for key, (error, most) in found.items() if error > most} == {}


def test_report_accounts_for_every_tensor_of_the_file(case):
    _, manifest, path, encoder = case
    report = inspect(path)
    assert report.problem is None
    place = "/".join([*manifest["select"]["path"], manifest["select"]["prefix"]])
    unread = tuple(f"{place}{head}" for head in manifest["select"]["drop"])
    seen = {*report.used, *report.dropped}
    assert len(seen) == len(report.used) + len(report.dropped) >= manifest["tensors"]
    official = {n for n in seen if n.startswith(place) and not (unread and n.startswith(unread))}
    # The manifest's branch and ours differ only in what evaluation never looks at.
    assert set(report.used) <= official
    assert all(n.endswith(("mask_token", "fc.weight", "fc.bias")) or "/head/" in n for n in official - set(report.used))
    assert set(report.expected) == {n for n in encoder.backbone.state_dict() if n in report.expected}
    assert {n for n in encoder.backbone.state_dict() if not n.endswith("num_batches_tracked")} <= set(report.expected)
    assert report.digest == encoder.digest
    assert (report.dim, report.feature) == (encoder.dim, encoder.feature)


def test_preprocessing_is_the_authors(case):
    _, manifest, _, encoder = case
    official, ours = manifest["eval"], encoder.preprocessing
    scale = 255 if max(official["mean"]) > 1 else 1
    assert ours.mean == pytest.approx([m / scale for m in official["mean"]], abs=1e-6)
    assert ours.std == pytest.approx([s / scale for s in official["std"]], abs=1e-6)
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())


PROTOCOLS = {
    "dino": dino.BICUBIC,
    "moco": resnets.IMAGENET,
    "swav": swav.SWAV_PIXELS,
    "simclr_v1": simclr.V1_PIXELS,
    "simclr_v2": resnets.PLAIN,
    "timm_dino": plain.TIMM_DINO,
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_preprocessing_equals_the_official_transform(protocol):
    pixels = PROTOCOLS[protocol]
    raw = pixels(Image.fromarray(rebuild.image()))
    x = ((raw.float() / 255 - torch.tensor(pixels.mean).view(3, 1, 1)) / torch.tensor(pixels.std).view(3, 1, 1)).numpy()
    with np.load(rebuild.HERE / "expected" / "preprocess.npz") as archive:
        want = {key.partition("/")[2]: archive[key] for key in archive.files if key.startswith(f"{protocol}/")}
    side = want["corner"].shape[-1]
    top, left = (x.shape[1] - side) // 2, (x.shape[2] - side) // 2
    assert x.shape == tuple(want["shape"])
    np.testing.assert_array_equal(x[:, :side, :side], want["corner"])
    np.testing.assert_array_equal(x[:, top : top + side, left : left + side], want["centre"])
    np.testing.assert_allclose(x.mean((1, 2)), want["mean"], atol=1e-5)
    np.testing.assert_allclose(x.std((1, 2)), want["std"], atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(MANIFESTS) - {c for c in MANIFESTS if rebuild.expected(c)}))
def test_shapes_alone_are_recognised(name, tmp_path):
    """The two largest files have no reference features: all their tensors are one stored number each."""
    manifest = MANIFESTS[name]
    saved = rebuild.build(manifest["tree"], [], "no tensor is wanted")
    path = rebuild.write(manifest, tmp_path, saved)
    report = inspect(path)
    assert report.format in FORMATS
    assert "claims" in str(report.problem)  # and is refused, because the numbers are not there


def test_every_protocol_is_a_frozen_preprocessing():
    for pixels in PROTOCOLS.values():
        assert isinstance(pixels, Preprocessing)
        with pytest.raises(dataclasses.FrozenInstanceError):
            pixels.size = 1
