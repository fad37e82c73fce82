"""Small networks of timm and torchvision, saved under the names that other programs give them.

Each entry of LAYOUTS returns (the object to save, container, module in eval mode, input side, format). The module is the
oracle: what it computes with its own forward pass is what the loaded file must give.
"""

import re

import timm
import torch
import torchvision
from torch import nn


def shaken(module, seed=0):
    """The module, perhaps built without memory, with every number drawn anew: no two layers or statistics are alike."""
    g = torch.Generator().manual_seed(seed)
    if next(module.parameters()).is_meta:
        module.to_empty(device="cpu")
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            tensor.zero_()
        else:
            noise = torch.randn(tensor.shape, generator=g)
            scale = 1 / max(1, tensor[0].numel()) ** 0.5 if tensor.ndim > 1 and "token" not in name else 0.1
            centre = 1.0 if tensor.ndim == 1 and not name.endswith(("bias", "running_mean")) else 0.0
            tensor.copy_((centre + scale * noise).abs() if name.endswith("running_var") else centre + scale * noise)
    return module.eval()


def resnet(name, **options):
    with torch.device("meta"):  # no time for an initialisation that is overwritten
        net = torchvision.models.get_model(name, weights=None, **options)
    net.fc = nn.Identity()
    return shaken(net)


def vit(**options):
    given = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0, **options}
    return shaken(timm.create_model(given.pop("base", "vit_base_patch16_224"), **given))


def renamed(state, rules):
    out = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        out[name] = tensor
    return out


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def moco(name):
    net = resnet(name)
    head = {"module.encoder_q.fc.weight": torch.randn(8, 4), "module.queue": torch.randn(4, 4)}
    momentum = {"module.encoder_k.conv1.weight": torch.randn(64, 3, 7, 7)}
    return (
        {"arch": name, "state_dict": {**head, **momentum, **prefixed(net.state_dict(), "module.encoder_q.")}},
        net,
        64,
    )


def dino_resnet_full():
    net = resnet("resnet18")
    student = prefixed(shaken(resnet("resnet18"), 1).state_dict(), "module.backbone.")
    return {"student": student, "teacher": prefixed(net.state_dict(), "module.backbone.")}, net, 64


def dino_vit(patch=8, side=32, **options):
    net = vit(patch_size=patch, img_size=side, **options)
    return net.state_dict(), net, side


def dino_vit_full():
    net = vit()
    student = prefixed(shaken(vit(), 1).state_dict(), "module.backbone.")
    teacher = {**prefixed(net.state_dict(), "backbone."), "head.mlp.0.weight": torch.randn(4, 4)}
    return {"student": student, "teacher": teacher, "epoch": 3}, net, 32


def dino_xcit(name):
    net = shaken(timm.create_model(name, num_classes=0))
    state = {}
    for key, tensor in net.state_dict().items():
        if re.match(r"cls_attn_blocks\.\d+\.attn\.[qkv]\.", key):
            merged = re.sub(r"\.[qkv]\.", ".qkv.", key)
            state[merged] = torch.cat([state[merged], tensor]) if merged in state else tensor
        else:
            state[key.replace("pos_embed.", "pos_embeder.")] = tensor
    return state, net, 64


def unfolded(net):
    """Weights of a network with registers as the lab keeps them: the class token's position apart from the token."""
    state = net.state_dict()
    position = torch.randn(1, 1, state["cls_token"].shape[-1])
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - position
    return state


GIANT = {"base": "vit_giant_patch14_dinov2", "mlp_ratio": 5.3334, "init_values": 1e-5}


def dinov2(registers=0, chunks=False, giant=False, teacher=False):
    options = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    net = vit(**options, **(GIANT if giant else {"init_values": 1e-5}))
    state = unfolded(net) if registers else net.state_dict()
    state["mask_token"] = torch.zeros(1, 128)
    rules = [(r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3.")] if giant else []
    state = renamed(state, [*rules, *([(r"^blocks\.(\d+)\.", r"blocks.\1.\1.")] if chunks else [])])
    if teacher:
        return {"teacher": {**prefixed(state, "backbone."), "dino_head.mlp.0.weight": torch.randn(4, 4)}}, net, 32
    return state, net, 32


def huggingface(second, registers=0, giant=False):
    options = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    layers = (GIANT if giant else {"init_values": 1e-5}) if second else {}
    net = vit(**options, **layers)
    if not second:  # what the hub's config says
        for layer in net.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = 1e-12
    state = unfolded(net) if registers else net.state_dict()
    out = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                out[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece.contiguous()
        else:
            out[name] = tensor
    mlp = [(r"\.mlp\.fc1\.", ".mlp.weights_in."), (r"\.mlp\.fc2\.", ".mlp.weights_out.")] if giant else []
    first = [
        (r"\.norm1\.", ".layernorm_before."),
        (r"\.norm2\.", ".layernorm_after."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    ]
    rules = [
        (r"\.attn\.proj\.", ".attention.output.dense."),
        *(mlp if second else first),
        (r"\.ls([12])\.gamma", r".layer_scale\1.lambda1"),
        (r"^blocks\.", "encoder.layer."),
        (r"^norm\.", "layernorm."),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^(cls_token|register_tokens)$", r"embeddings.\1"),
    ]
    out = renamed(out, rules)
    if second:
        out["embeddings.mask_token"] = torch.zeros(1, 128)
    return out, net, 32


def classified():
    state, net, side = huggingface(second=True)
    return {**prefixed(state, "dinov2."), "classifier.weight": torch.randn(3, 256)}, net, side


def lone_teacher():
    tree, net, side = dino_vit_full()
    return {**tree["teacher"], "head.last_layer.weight_v": torch.randn(4, 4)}, net, side


def lone_moco():
    tree, net, side = moco("resnet18")
    return {name.removeprefix("module."): tensor for name, tensor in tree["state_dict"].items()}, net, side


def moco_v3(depth=12):
    net = vit(embed_dim=96, depth=depth, num_heads=12)
    base = {
        **prefixed(net.state_dict(), "module.base_encoder."),
        "module.base_encoder.head.0.weight": torch.randn(4, 96),
    }
    return {"state_dict": {**base, **prefixed(vit(embed_dim=96).state_dict(), "module.momentum_encoder.")}}, net, 32


def mmpretrain_vit():
    net = vit(embed_dim=96, depth=12, num_heads=12)
    rules = [
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^norm\.", "ln1."),
        (r"^blocks\.(\d+)\.norm([12])\.", r"layers.\1.ln\2."),
        (r"^blocks\.(\d+)\.mlp\.fc1\.", r"layers.\1.ffn.layers.0.0."),
        (r"^blocks\.(\d+)\.mlp\.fc2\.", r"layers.\1.ffn.layers.1."),
        (r"^blocks\.", "layers."),
    ]
    state = prefixed(renamed(net.state_dict(), rules), "backbone.")
    return {"meta": {"config": 'model = dict(type="MoCoV3")'}, "state_dict": state}, net, 32


def numbered(name):
    net = resnet(name)
    state = prefixed(renamed(net.state_dict(), NUMBERS), "backbone.")
    return {"state_dict": {**state, "projection_head.layers.0.weight": torch.randn(2, 2)}}, net, 64


def solo(name, prefix):
    net = resnet(name)
    state = {**prefixed(net.state_dict(), prefix), "classifier.weight": torch.randn(2, 2)}
    return {"state_dict": state, "pytorch-lightning_version": "1.6.4"}, net, 64


def torchvision_vit():
    net = torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=128, mlp_dim=256)
    state = shaken(net).state_dict()
    net.heads = nn.Identity()
    return state, net, 32


def ibot_full():
    tree, net, side = dino_vit_full()
    tree["teacher"]["head.last_layer2.weight_v"] = torch.randn(4, 4)
    tree["student"]["module.backbone.masked_embed"] = torch.randn(1, 128)
    return tree, net, side


def msn():
    net = vit()
    state = {**prefixed(net.state_dict(), "module."), "module.fc.fc1.weight": torch.randn(4, 128)}
    net.norm = nn.Identity()  # its probes read the class token before the norm
    other = prefixed(shaken(vit(), 1).state_dict(), "module.")
    return {"encoder": other, "target_encoder": state, "prototypes": torch.randn(8, 4)}, net, 32


def mae():
    net = vit()
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    return {"model": {**net.state_dict(), **decoder}, "optimizer": {}}, net, 32


def ijepa():
    net = vit(class_token=False, global_pool="avg", fc_norm=False)
    other = prefixed(shaken(vit(class_token=False, global_pool="avg", fc_norm=False), 1).state_dict(), "module.")
    predictor = {"module.mask_token": torch.zeros(1, 1, 8), "module.predictor_blocks.0.norm1.weight": torch.ones(8)}
    target = prefixed(net.state_dict(), "module.")
    return {"encoder": other, "predictor": predictor, "target_encoder": target, "epoch": 3}, net, 32


def simsiam():
    net = resnet("resnet18")
    heads = {"module.encoder.fc.0.weight": torch.randn(4, 4), "module.predictor.0.weight": torch.randn(4, 4)}
    return {"arch": "resnet18", "state_dict": {**prefixed(net.state_dict(), "module.encoder."), **heads}}, net, 64


def joint(*heads):
    net = resnet("resnet18")
    beside = {f"module.{name}": torch.randn(4) for name in heads}
    return {"epoch": 3, "model": {**prefixed(net.state_dict(), "module.backbone."), **beside}}, net, 64


NUMBERS = [(r"^conv1\.", "0."), (r"^bn1\.", "1."), *((rf"^layer{i}\.", f"{i + 3}.") for i in range(1, 5))]


def byol():
    net = resnet("resnet18")
    online = {**prefixed(renamed(net.state_dict(), NUMBERS), "encoder."), "projetion.net.0.weight": torch.randn(4, 4)}
    target = prefixed(renamed(shaken(resnet("resnet18"), 1).state_dict(), NUMBERS), "encoder.")
    return {"online_network_state_dict": online, "target_network_state_dict": target}, net, 64


def byol_learner():
    net = resnet("resnet18")
    state = {**prefixed(net.state_dict(), "online_encoder.net."), "online_predictor.net.0.weight": torch.randn(4, 4)}
    return {**state, **prefixed(shaken(resnet("resnet18"), 1).state_dict(), "target_encoder.net.")}, net, 64


def byol_lightning():
    """The learner, which holds its network under two names, in a LightningModule."""
    state, net, side = byol_learner()
    return {"state_dict": prefixed({**state, **prefixed(net.state_dict(), "net.")}, "learner."), "epoch": 1}, net, side


LAYOUTS = {
    "iBOT, teacher of a run": (ibot_full, "zip", "ibot"),
    "MSN, target encoder": (msn, "zip", "msn"),
    "MAE, with its decoder": (mae, "zip", "mae"),
    "I-JEPA, target encoder": (ijepa, "zip", "ijepa"),
    "SimSiam, ResNet-18": (simsiam, "legacy", "simsiam"),
    "Barlow Twins, own run": (lambda: joint("projector.0.weight", "bn.running_mean"), "zip", "barlow"),
    "VICReg, own run": (lambda: joint("projector.0.weight", "projector.0.bias"), "zip", "vicreg"),
    "BYOL, numbered layers": (byol, "zip", "byol"),
    "BYOL, a whole learner": (byol_learner, "zip", "byol"),
    "BYOL, a learner in Lightning": (byol_lightning, "zip", "byol"),
    "MoCo, ResNet-34": (lambda: moco("resnet34"), "zip", "moco"),
    "MoCo, ResNeXt-50": (lambda: moco("resnext50_32x4d"), "legacy", "moco"),
    "MoCo, wide ResNet-50-2": (lambda: moco("wide_resnet50_2"), "zip", "moco"),
    "MoCo v3, narrow ViT": (moco_v3, "zip", "moco_v3"),
    "mmpretrain, narrow ViT": (mmpretrain_vit, "zip", "mm"),
    "DINO, teacher of a ResNet-18 run": (dino_resnet_full, "zip", "dino_full"),
    "DINO, narrow ViT": (dino_vit, "zip", "dino_vit"),
    "DINO, patch 4 at 64 px": (lambda: dino_vit(4, 64, mlp_ratio=3.3), "legacy", "dino_vit"),
    "DINO, teacher of a ViT run": (dino_vit_full, "zip", "dino_full"),
    "DINO, XCiT nano with patch 8": (lambda: dino_xcit("xcit_nano_12_p8_224"), "zip", "dino_xcit"),
    "DINOv2": (dinov2, "zip", "dinov2"),
    "DINOv2, registers": (lambda: dinov2(registers=3), "zip", "dinov2"),
    "DINOv2, chunked blocks": (lambda: dinov2(chunks=True), "zip", "dinov2"),
    "DINOv2, gated MLP as in ViT-g": (lambda: dinov2(giant=True), "zip", "dinov2"),
    "DINOv2, teacher, registers, chunks, gated": (lambda: dinov2(4, True, True, True), "zip", "dinov2_train"),
    "Hugging Face DINO": (lambda: huggingface(second=False), "zip", "hf_dino"),
    "Hugging Face DINOv2": (lambda: huggingface(second=True), "safetensors", "hf_dinov2"),
    "Hugging Face DINOv2, registers": (lambda: huggingface(True, registers=4), "safetensors", "hf_dinov2"),
    "Hugging Face DINOv2, gated": (lambda: huggingface(True, giant=True), "zip", "hf_dinov2"),
    "Hugging Face DINOv2 with a classifier": (classified, "safetensors", "hf_dinov2"),
    "DINO, a teacher saved alone": (lone_teacher, "zip", "dino_full"),
    "MoCo, a state dict saved alone": (lone_moco, "zip", "moco"),
    "timm DINO": (dino_vit, "safetensors", "timm_vit"),
    "lightly, numbered ResNet-34": (lambda: numbered("resnet34"), "zip", "lightly"),
    "solo-learn, ImageNet stem, old names": (lambda: solo("resnet18", "encoder."), "zip", "solo"),
    "torchvision ViT": (torchvision_vit, "zip", "torchvision_vit"),
}


def save(tree, container, folder):
    """Write a layout's object to a file."""
    if container == "safetensors":
        from safetensors.torch import save_file

        path = folder / "x.safetensors"
        save_file(tree, path)
    else:
        path = folder / "x.pth"
        torch.save(tree, path, _use_new_zipfile_serialization=container == "zip")
    return path
