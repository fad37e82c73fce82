"""Small teachers in their labs' files, with the heads that they were trained with."""

import torch
from torch import nn

import ssl_kd

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
WEIGHT_NORM = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


def small_vit():
    torch.manual_seed(1)
    return ssl_kd.build("vit_tiny_patch16_224", **VIT)


def dino_head(width=16, hidden=12, bottleneck=5, classes=7):
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
    )
    return layers, last_layer(bottleneck, classes)


def last_layer(bottleneck, classes):
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(bottleneck, classes, bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original0.uniform_(0.5, 2)
    return layer


def named(layers, last, prefix, old_names=True, name="last_layer"):
    state = {f"{prefix}mlp.{key}": tensor for key, tensor in layers.state_dict().items()}
    for key, tensor in zip(WEIGHT_NORM[not old_names], last.state_dict().values(), strict=True):
        state[f"{prefix}{name}.{key}"] = tensor
    return state


def with_backbone(state, backbone):
    return state | {f"module.backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}


def saved_dino(path, prefix="module.head.", old_names=True, backbone=None, width=16):
    layers, last = dino_head(width)
    teacher = named(layers, last, prefix, old_names)
    if backbone is not None:
        teacher = with_backbone(teacher, backbone)
    torch.save({"teacher": teacher, "dino_loss": {"center": torch.linspace(-1, 1, 7)[None]}}, path)
    return layers, last


def saved_ibot(path, backbone=None, width=16):
    layers, last = dino_head(width)
    of_patches = last_layer(5, 9)
    teacher = named(layers, last, "module.head.") | named(layers, of_patches, "module.head.", name="last_layer2")
    if backbone is not None:
        teacher = with_backbone(teacher, backbone)
    loss = {"center": torch.linspace(-1, 1, 7)[None], "center2": torch.linspace(0, 1, 9)[None, None]}
    torch.save({"teacher": teacher, "ibot_loss": loss}, path)
    return layers, last, of_patches


def msn_head(width=16, norms=True):
    torch.manual_seed(0)
    layers = {"fc1": nn.Linear(width, 12), "bn1": nn.BatchNorm1d(12), "gelu1": nn.GELU(), "fc2": nn.Linear(12, 12)}
    layers |= {"bn2": nn.BatchNorm1d(12), "gelu2": nn.GELU(), "fc3": nn.Linear(12, 5)}
    head = nn.Sequential()
    for name, layer in layers.items():
        if norms or not name.startswith("bn"):
            head.add_module(name, layer)
    head(torch.randn(32, width))  # running statistics of something
    return head.eval()


def saved_msn(path, norms=True, backbone=None, width=16):
    head, prototypes = msn_head(width, norms), torch.randn(7, 5)
    state = {f"module.fc.{name}": tensor for name, tensor in head.state_dict().items()}
    if backbone is not None:
        state |= {f"module.{name}": tensor for name, tensor in backbone.state_dict().items()}
    torch.save({"target_encoder": state, "prototypes": prototypes}, path)
    return head, prototypes
