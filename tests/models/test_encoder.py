"""Encoders: pixels in [0, 1] in, named features out, spectacles on."""

import dataclasses
import io

import layouts
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ssl_kd.errors import UserError
from ssl_kd.models.backbones import POSITIONS, stages
from ssl_kd.models.encoder import Encoder, build, learned_at
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.types import Features

SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2}


def small_vit(**options):
    torch.manual_seed(0)
    encoder = build("vit_tiny_patch16_224", **{**SMALL_VIT, **options}).eval()
    layouts.shaken(encoder.backbone)
    return encoder


# Preprocessing


def noise(width, height, mode="RGB"):
    channels = {"RGB": (height, width, 3), "L": (height, width)}[mode]
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, channels, dtype=np.uint8))


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (37, 224), (500, 500), (224, 224), (256, 256)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_preprocessing_equals_torchvision(size, interpolation):
    from torchvision import transforms

    mode = transforms.InterpolationMode(interpolation)
    official = transforms.Compose(
        [transforms.Resize(256, mode), transforms.CenterCrop(224), transforms.PILToTensor()],
    )
    image = noise(*size)
    assert torch.equal(Preprocessing(interpolation=interpolation)(image), official(image))


def test_preprocessing_without_resize_still_gives_squares_of_its_size():
    pixels = Preprocessing(size=32, resize=None, crop=None)
    native = noise(32, 32)
    assert torch.equal(pixels(native).permute(1, 2, 0), torch.from_numpy(np.array(native)))
    assert pixels(noise(50, 40)).shape == (3, 32, 32)


def test_greyscale_becomes_three_equal_channels():
    x = Preprocessing()(noise(300, 260, "L"))
    assert x.dtype == torch.uint8
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0], x[2])


def test_the_same_preprocessing_at_another_size():
    dino = Preprocessing(interpolation="bicubic")
    assert dino.at(224) == dino
    assert dino.at(448).resize == 512
    assert dino.at(224, crop_ratio=1.0).resize == 224
    assert dino.at(32).resize == round(32 * 256 / 224)
    assert Preprocessing(size=32, resize=None, crop=None).at(64).resize == 64
    assert dino.at(96)(noise(120, 200)).shape == (3, 96, 96)


@pytest.mark.parametrize(
    "bad",
    [
        {"interpolation": "bicubik"},
        {"size": 0},
        {"crop": -1},
        {"resize": 0},
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (0.5,)},
        {"mean": ("a", "b", "c")},
        {"size": 10**9},
    ],
)
def test_a_preprocessing_that_cannot_be_is_refused(bad):
    with pytest.raises(UserError):
        Preprocessing(**bad)


def test_preprocessing_survives_json():
    import json

    pixels = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 1.0), 96, None, 96, "bicubic")
    assert Preprocessing.from_dict(json.loads(json.dumps(dataclasses.asdict(pixels)))) == pixels


# Building


@pytest.mark.parametrize(
    ("arch", "options", "feature", "dim", "tokens"),
    [
        ("resnet18", {}, "pool", 512, 4),
        ("timm/resnet18", {"small_stem": True}, "pool", 512, 64),
        ("resnet50", {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}, "pool", 256, 4),
        ("mobilenetv3_small_100", {}, "pool", 1024, 4),
        ("vit_tiny_patch16_224", {"img_size": 64}, "cls", 192, 16),
        ("convnext_atto", {}, "pool", 320, 4),
        ("torchvision/resnet18", {}, "pool", 512, 4),
        ("torchvision/mobilenet_v3_small", {}, "pool", 1024, 4),
        ("ssl_kd/resnet50", {"width": 1, "selective": 0.0625}, "pool", 2048, 4),
    ],
)
def test_networks_by_name_say_their_true_width(arch, options, feature, dim, tokens):
    encoder = build(arch, **options).eval()
    with torch.no_grad():
        found = encoder(torch.rand(2, 3, 64, 64))
    assert isinstance(found, Features)
    assert (encoder.feature, encoder.dim, encoder.arch) == (feature, dim, arch)
    assert found.embedding.shape == (2, dim)
    assert found.tokens.shape[:2] == (2, tokens)


def test_the_default_feature_is_what_timm_returns():
    """So that an exported student gives the same numbers without us."""
    for arch in ("resnet18", "mobilenetv3_small_100", "vit_tiny_patch16_224"):
        encoder = build(arch).eval()
        side = 224 if arch.startswith("vit") else 64
        images = torch.rand(1, 3, side, side)
        with torch.no_grad():
            want = encoder.backbone((images - encoder.mean) / encoder.std)
            torch.testing.assert_close(encoder(images).embedding, want)


@pytest.mark.parametrize(
    ("arch", "options", "says"),
    [
        ("resnet81", {}, "Did you mean resnet18"),
        ("torchvision/resnet81", {}, "Did you mean resnet18"),
        ("ssl_kd/resnet51", {}, "Did you mean ssl_kd|Did you mean resnet50"),
        ("elsewhere/resnet18", {}, "are named NAME"),
        ("resnet18", {"imgsize": 32}, "imgsize"),
        ("vit_tiny_patch16_224", {"embed_dim": 65}, "cannot be built"),
        ("vit_tiny_patch16_224", {"small_stem": True}, "small_stem is for ResNets"),
        ("resnet18", {"conv_stem": True}, "conv_stem is for ViTs"),
        ("vit_tiny_patch16_224", {"positions": "bilinear"}, "positions='bilinear' is not one of"),
        ("resnet18", {"interleave": True}, "does not take interleave"),
        ("ssl_kd/resnet50", {"width": "two"}, "width is a whole number"),
        ("ssl_kd/resnet50", {"depth": 3}, "does not take depth"),
        ("hf-hub:somebody/model", {}, "are named NAME"),
        ("resnet18", {"features_only": True}, "cannot be built with {'features_only': True}"),
        ("resnet18", {"small_stem": True, "stem_padding": "x"}, "cannot be built"),
        ("torchvision/fcn_resnet50", {}, "no such classifier"),
        ("torchvision/resnet18", {"foo": 1}, "cannot be built"),
    ],
)
def test_names_and_arguments_that_do_not_exist_are_met_in_one_line(arch, options, says):
    with pytest.raises(UserError, match=says) as error:
        build(arch, **options)
    assert "\n" not in str(error.value)


def test_small_stem_keeps_the_resolution_of_thumbnails():
    with torch.no_grad():
        assert build("resnet18", small_stem=True).eval()(torch.rand(1, 3, 32, 32)).tokens.shape == (1, 16, 512)
        assert build("resnet18").eval()(torch.rand(1, 3, 32, 32)).tokens.shape == (1, 1, 512)
    assert build("resnet18", small_stem=True).preprocessing.size == 32
    assert build("vit_tiny_patch16_224", img_size=32, patch_size=4).preprocessing.size == 32


# Reading


def test_mean_and_std_are_inside():
    images = torch.rand(2, 3, 32, 32)
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.mean((2, 3))

    pixels = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    Encoder.from_module(Spy(), 3, pixels)(images)
    want = (images - torch.tensor(pixels.mean).view(3, 1, 1)) / torch.tensor(pixels.std).view(3, 1, 1)
    torch.testing.assert_close(seen[0], want)


def test_bytes_and_floats_are_the_same_picture():
    encoder = small_vit()
    raw = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(encoder(raw).embedding, encoder(raw.float() / 255).embedding)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 32, 32, 3)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match="images must be"):
        small_vit()(torch.rand(shape))


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(UserError, match="smaller than one 8x8 patch"):
        small_vit()(torch.rand(1, 3, 7, 32))


def blocks_of(encoder, images):
    """Class and patch tokens after every block, each through the final norm: timm's own forward, block by block."""
    outs = []
    vit = encoder.backbone
    hooks = [block.register_forward_hook(lambda _, __, out: outs.append(vit.norm(out))) for block in vit.blocks]
    vit((images - encoder.mean) / encoder.std)
    for hook in hooks:
        hook.remove()
    return outs


def test_named_features_are_the_tokens_they_name():
    encoder = small_vit()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        outs = blocks_of(encoder, images)
        found = encoder.embeddings(images, ["cls", "avg", "cls2", "cls3", "cls_avg", "cls3_avg"])
    classes, mean = [out[:, 0] for out in outs], outs[-1][:, 1:].mean(1)
    want = {
        "cls": classes[2],
        "avg": mean,
        "cls2": torch.cat(classes[1:], 1),
        "cls3": torch.cat(classes, 1),
        "cls_avg": torch.cat([classes[2], mean], 1),
        "cls3_avg": torch.cat([*classes, mean], 1),
    }
    assert {name: encoder.width(name) for name in want} == {name: x.shape[1] for name, x in want.items()}
    for name, x in want.items():
        torch.testing.assert_close(found[name], x)


def test_dino_interleaves_class_and_mean_channel_by_channel():
    plain, mixed = small_vit(), small_vit(interleave=True)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        parts = plain.embeddings(images, ["cls", "avg", "cls2_avg"])
        found = mixed.embeddings(images, ["cls_avg", "cls2_avg"])
    torch.testing.assert_close(found["cls_avg"][:, 0::2], parts["cls"])
    torch.testing.assert_close(found["cls_avg"][:, 1::2], parts["avg"])
    # The official code cannot mix several class tokens with one mean; ours are then simply side by side.
    torch.testing.assert_close(found["cls2_avg"], parts["cls2_avg"])


@pytest.mark.parametrize("feature", ["pool", "cls0", "cls4", "cls01", "cls_max", "avg2", "", "CLS"])
def test_features_that_a_vit_lacks_are_refused(feature):
    with pytest.raises(UserError, match="no feature"):
        small_vit().width(feature)


@pytest.mark.parametrize("registers", [0, 3])
def test_positions_at_other_sizes_follow_timm_by_default(registers):
    options = {"reg_tokens": registers, "no_embed_class": bool(registers)}
    encoder = small_vit(**options)
    dynamic = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **SMALL_VIT, **options)
    dynamic.load_state_dict(encoder.backbone.state_dict())
    images = torch.rand(2, 3, 48, 64)
    with torch.no_grad():
        want = dynamic.eval()((images - encoder.mean) / encoder.std)
        torch.testing.assert_close(encoder(images).embedding, want)
    assert encoder(images).tokens.shape == (2, 6 * 8, 64)


def test_torchvision_positions_follow_torchvision():
    from torchvision.models.vision_transformer import interpolate_embeddings

    grid = torch.randn(1, 16, 4, 4)
    stored = torch.cat([torch.zeros(1, 1, 16), grid.flatten(2).transpose(1, 2)], dim=1)
    resized = interpolate_embeddings(56, 8, {"encoder.pos_embedding": stored})["encoder.pos_embedding"]
    found = POSITIONS["corners"](grid, 7, 7).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, resized[:, 1:])


def test_every_interpolation_keeps_the_stored_grid():
    for positions in POSITIONS:
        encoder = small_vit(positions=positions)
        assert torch.equal(encoder.network.patch_positions(4, 4), encoder.backbone.pos_embed[:, 1:])
        assert encoder.network.patch_positions(3, 7).shape == (1, 21, 64)


def test_layers_are_tapped_only_when_asked_for():
    encoder = build("resnet18").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert encoder(images).layers == {}
        found = encoder(images, layers=("layer2", "layer4.1.bn2")).layers
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "layer2": (1, 128, 8, 8),
        "layer4.1.bn2": (1, 512, 2, 2),
    }
    assert not encoder.backbone.layer2._forward_hooks
    with pytest.raises(UserError, match="Did you mean layer2"):
        encoder(images, layers=("layer22",))


@pytest.mark.parametrize(
    ("arch", "given", "ends", "shapes"),
    [
        ("resnet18", {}, ["layer1", "layer2", "layer3", "layer4"], [(64, 16, 16), (512, 2, 2)]),
        ("mobilenetv3_small_050", {}, ["blocks.0", "blocks.1", "blocks.3", "blocks.5"], [(8, 16, 16), (288, 2, 2)]),
        ("vit_tiny_patch16_224", {"depth": 6}, ["blocks.1", "blocks.2", "blocks.4", "blocks.5"], [(17, 192)] * 2),
        ("vit_tiny_patch16_224", {"depth": 2}, ["blocks.0", "blocks.0", "blocks.1", "blocks.1"], [(17, 192)] * 2),
        ("torchvision/resnet18", {}, ["layer1", "layer2", "layer3", "layer4"], [(64, 16, 16), (512, 2, 2)]),
        ("ssl_kd/resnet50", {}, ["layer1", "layer2", "layer3", "layer4"], [(256, 16, 16), (2048, 2, 2)]),
        ("swin_tiny_patch4_window7_224", {}, [f"layers.{k}" for k in range(4)], [(96, 16, 16), (768, 2, 2)]),
    ],
)
def test_every_kind_of_network_has_four_stages(arch, given, ends, shapes):
    given |= {"img_size": 64} if arch.startswith(("vit", "swin")) else {}
    encoder = build(arch, **given).eval()
    assert stages(encoder.backbone) == tuple(ends)
    with torch.no_grad():
        found = encoder(torch.rand(1, 3, 64, 64), layers=("stage.1", "stage.4")).layers
    assert [tuple(found[name].shape[1:]) for name in ("stage.1", "stage.4")] == shapes


def test_a_network_that_does_not_tell_its_stages_is_asked_for_names():
    with pytest.raises(UserError, match=r"Levit.*does not say where its 4 stages end; name its own"):
        build("levit_128s").eval()(torch.rand(1, 3, 224, 224), layers=("stage.2",))


def test_modules_from_python_return_vectors_maps_or_features():
    class Maps(torch.nn.Module):
        def forward(self, x):
            return x[:, :, ::8, ::8]

    class Whole(torch.nn.Module):
        def forward(self, x):
            return Features(x.mean((2, 3)), x.flatten(2).transpose(1, 2))

    images = torch.rand(2, 3, 32, 32)
    maps = Encoder.from_module(Maps(), 3)(images)
    assert maps.embedding.shape == (2, 3)
    assert maps.tokens.shape == (2, 16, 3)
    assert Encoder.from_module(Whole(), 3)(images).tokens.shape == (2, 1024, 3)
    with pytest.raises(UserError, match=r"returned \(2, 3\) where \(B, 5\) was declared"):
        Encoder.from_module(Whole(), 5)(images)


def test_half_precision_weights_get_half_precision_pixels():
    encoder = small_vit().bfloat16()
    assert encoder(torch.rand(1, 3, 32, 32)).embedding.dtype == torch.bfloat16


# Identity


def test_the_digest_follows_the_weights():
    encoder, other = small_vit(), small_vit()
    first = encoder.digest
    assert first == other.digest == encoder.digest
    with torch.no_grad():
        encoder.backbone.norm.bias[0] += 1
    assert encoder.digest != first
    with torch.no_grad():
        encoder.backbone.norm.bias.copy_(other.backbone.norm.bias)
    assert encoder.digest == first


def test_the_digest_knows_what_shapes_do_not_show():
    assert small_vit().digest != small_vit(num_heads=4).digest


def test_an_optimiser_step_changes_the_digest():
    encoder = small_vit()
    before = encoder.digest
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder(torch.rand(2, 3, 32, 32)).embedding.sum().backward()
    optimiser.step()
    assert encoder.digest != before


def test_state_dicts_hold_weights_and_nothing_of_the_preprocessing():
    encoder = small_vit()
    assert {name.removeprefix("network.backbone.") for name in encoder.state_dict()} == set(
        encoder.backbone.state_dict()
    )
    data = io.BytesIO()
    torch.save(encoder.state_dict(), data)
    data.seek(0)
    other = build("vit_tiny_patch16_224", **SMALL_VIT)
    other.load_state_dict(torch.load(data, weights_only=True))
    assert other.digest == encoder.digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_floating_point_pixels_in_0_to_255_are_refused(dtype):
    encoder = build("resnet18", channels=[8, 8, 8, 8])
    pixels = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"expected pixels in \[0, 1\], or uint8; got values up to 200"):
        encoder(pixels.to(dtype))
    assert torch.equal(encoder.normalise(pixels), encoder.normalise(pixels.float() / 255))


def test_bytes_of_a_dark_picture_as_floats_are_refused_too():
    encoder = build("resnet18", channels=[8, 8, 8, 8])
    dark = torch.randint(0, 12, (2, 3, 32, 32)).float()
    with pytest.raises(UserError, match=r"expected pixels in \[0, 1\], or uint8"):
        encoder(dark)
    encoder(dark / 255)


# Preprocessing


KEYS = {
    "Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224, resize=256, crop=224, "
    "interpolation='bilinear')": Preprocessing(),
    "Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=96, resize=96, crop=96, "
    "interpolation='bilinear')": Preprocessing().at(96, 1.0),
    "Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), size=32, resize=None, crop=None, interpolation='box')": Preprocessing(
        (0, 0, 0), (1, 1, 1), 32, None, None, "box"
    ),
}


@pytest.mark.parametrize("key", KEYS)
def test_the_key_of_a_preprocessing_is_what_keys_of_caches_have_always_held(key):
    assert KEYS[key].key() == key


def test_a_preprocessing_is_read_back_from_its_key_and_nothing_else_is():
    for pixels in KEYS.values():
        assert Preprocessing.from_key(pixels.key()) == pixels
    for text in (
        "",
        "Preprocessing(",
        "224",
        "Preprocessing(size=-1)",
        "Preprocessing(sides=2)",
        "Preprocessing(size=exit())",
    ):
        with pytest.raises(ValueError, match="are no pixels"):
            Preprocessing.from_key(text)


def test_the_key_of_a_preprocessing_names_every_field():
    from dataclasses import fields, replace

    others = {"mean": (0.1, 0.2, 0.3), "std": (1, 1, 1), "size": 32, "resize": 40, "crop": 36, "interpolation": "box"}
    others["square"] = True
    assert set(others) == {field.name for field in fields(Preprocessing)}
    keys = {replace(Preprocessing(), **{name: value}).key() for name, value in others.items()}
    assert len(keys | {Preprocessing().key()}) == len(others) + 1


@pytest.mark.parametrize("side", [(300, 400), (400, 300), (64, 64), (20, 50)])
def test_a_square_is_what_torchvision_makes_of_both_sides(side):
    from torchvision import transforms

    mode = transforms.InterpolationMode("bicubic")
    whole = transforms.Compose([transforms.Resize((64, 64), mode), transforms.PILToTensor()])
    cut = transforms.Compose([transforms.Resize((64, 64), mode), transforms.CenterCrop(48), transforms.PILToTensor()])
    image = noise(*side)
    assert torch.equal(
        Preprocessing(size=64, resize=64, crop=64, interpolation="bicubic", square=True)(image), whole(image)
    )
    assert torch.equal(
        Preprocessing(size=48, resize=64, crop=48, interpolation="bicubic", square=True)(image), cut(image)
    )


def test_words_about_pixels_say_what_is_done():
    native = Preprocessing((0, 0, 0), (1, 1, 1), 32, None, None)
    assert str(native) == "plain [0, 1]; resize the shorter side to 32, centre crop 32, bilinear; 32 px"
    assert native(noise(50, 40)).shape == (3, 32, 32)
    assert "resize to a square of 64, bilinear" in str(Preprocessing(size=64, resize=64, crop=64, square=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 58.395, -2, 1e300, 10**400, "a", None])
@pytest.mark.parametrize("which", ["mean", "std"])
def test_colours_that_no_pixel_has_are_refused_in_one_line(which, value):
    with pytest.raises(UserError, match="mean and std need three numbers") as error:
        Preprocessing(**{which: (value, value, value)})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x: x.index_fill(0, torch.tensor([1]), float("nan")), "some are NaN or infinite"),
        (lambda x: x.index_fill(0, torch.tensor([1]), float("-inf")), "some are NaN or infinite"),
        (lambda x: (x - 0.45) / 0.22, "values down to -2"),
        (lambda x: x.numpy(), "must be a tensor"),
        (list, "must be a tensor"),
        (lambda x: x > 0.5, "got torch.bool"),
        (lambda x: (255 * x).long(), "got torch.int64"),
    ],
)
def test_pixels_that_are_none_are_refused_in_one_line(spoil, says):
    images = torch.rand(2, 3, 32, 32)
    images[0, 0, 0, 0] = 0.0
    with pytest.raises(UserError, match=says):
        build("resnet18", channels=[8, 8, 8, 8])(spoil(images))


def test_the_size_at_which_a_student_learned_its_teacher_is_known_of_its_own_alone():
    teacher, student = (build("resnet18", preprocessing=Preprocessing().at(size)) for size in (224, 56))
    teacher.origin, student.origin = "a lab's file", "distilled from a lab's file"
    alike = learned_at(student, teacher)
    assert (alike.size, alike.mean) == (56, teacher.preprocessing.mean)
    assert learned_at(teacher, teacher) is None
    teacher.preprocessing = alike
    assert learned_at(student, teacher) is None
    teacher.preprocessing, student.origin = Preprocessing().at(224), "distilled from another file"
    assert learned_at(student, teacher) is None
