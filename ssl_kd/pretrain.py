"""Small self-supervised teachers for an own domain: MoCo v2 from lightly's parts, saved as its lab saves it.

The file has the very layout of the official training script (`epoch`, `arch`, `state_dict` with `module.encoder_q.`,
`module.encoder_k.`, `module.queue`, and `optimizer`), so it comes back through the ordinary loader and is resumable.

    ssl-kd pretrain --images photos/ --arch resnet18 --size 48 --epochs 30 --out runs/teacher.pth.tar

Source: He et al., arXiv:1911.05722; Chen et al., arXiv:2003.04297; thumbnail settings after the authors' CIFAR-10 demo.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ssl_kd.config import PretrainConfig
from ssl_kd.errors import NonFinite
from ssl_kd.images import Images, open_images
from ssl_kd.precision import resolve
from ssl_kd.progress import Progress
from ssl_kd.run import atomic_save
from ssl_kd.views import ViewLoader, scheme


class MoCo(nn.Module):
    """Query and key encoder with two-layer heads, as in MoCo v2; named as in the official checkpoints."""

    def __init__(self, arch: str, width: int = 128):
        import timm
        from lightly.models.modules import MoCoProjectionHead

        super().__init__()
        backbone = timm.create_model(arch, num_classes=0)
        dim = backbone.num_features
        backbone.fc = MoCoProjectionHead(dim, dim, width).layers
        self.encoder_q = backbone
        self.encoder_k = copy.deepcopy(backbone).requires_grad_(False)

    @staticmethod
    def embed(encoder: nn.Module, images: Tensor) -> Tensor:
        """Projected, unit-length embeddings (B, 128)."""
        features = encoder.global_pool(encoder.forward_features(images))
        return nn.functional.normalize(encoder.fc(features).float(), dim=1)


def pretrain(config: PretrainConfig, images: Images | None = None) -> Path:
    """Train a MoCo v2 teacher on unlabelled images; returns the checkpoint's path. Resumes a checkpoint that is there."""
    from lightly.loss import NTXentLoss
    from lightly.models.utils import update_momentum

    fabric = Fabric(accelerator=config.accelerator, devices=1)
    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=resolve(config.precision, fabric.device.type))
    torch.manual_seed(config.seed)
    images = images if images is not None else open_images(config.images)
    loader = ViewLoader(images, scheme(config.views), config.size, config.batch_size, config.seed, config.threads)
    model = MoCo(config.arch).to(memory_format=torch.channels_last)
    mean = torch.tensor((0.485, 0.456, 0.406), device=fabric.device).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225), device=fabric.device).view(3, 1, 1)
    loss_of = NTXentLoss(temperature=config.temperature, memory_bank_size=(config.queue, 128)).to(fabric.device)
    optimizer = torch.optim.SGD(
        model.encoder_q.parameters(), config.lr * config.batch_size / 256, momentum=0.9, weight_decay=config.weight_decay
    )
    model.to(fabric.device)
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    first = _resume(out, model, loss_of, optimizer) if out.exists() else 0
    steps = loader.batches_per_epoch()
    total = steps * config.epochs
    base = [group["lr"] for group in optimizer.param_groups]
    with Progress("pretrain", len(images) * config.epochs, quiet=config.quiet, start=first * len(images)) as bar:
        for epoch in range(first, config.epochs):
            for step, raw in enumerate(loader.epoch(epoch)):
                done = epoch * steps + step
                factor = min(1.0, (done + 1) / max(1, steps)) * 0.5 * (1 + math.cos(math.pi * done / total))
                for group, lr in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = lr * factor
                update_momentum(model.encoder_q, model.encoder_k, config.momentum)
                views = loader.finish_all(raw, fabric.device)
                query_view, key_view = ((pixels - mean) / std for pixels in views.pixels)
                with fabric.autocast():
                    query = model.embed(model.encoder_q, query_view)
                    with torch.no_grad():
                        key = model.embed(model.encoder_k, key_view)
                loss = loss_of(query, key)
                value = loss.item()
                if not math.isfinite(value):
                    raise NonFinite(f"pretrain: the loss became {value} in epoch {epoch}; lower lr (now {config.lr})")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                bar.advance(len(raw), epoch=f"{epoch + 1}/{config.epochs}", loss=f"{value:.3f}")
            atomic_save(out, _checkpoint(config, epoch + 1, model, loss_of, optimizer))
    return out


def _checkpoint(config: PretrainConfig, epoch: int, model: MoCo, loss_of: nn.Module, optimizer) -> dict:
    """The dict that MoCo's own training script writes."""
    state = {f"module.{k}": v.contiguous() for k, v in model.state_dict().items()}
    bank = loss_of.memory_bank
    state["module.queue"] = bank.bank.T.contiguous()
    state["module.queue_ptr"] = bank.bank_ptr.reshape(1).long()
    return {"epoch": epoch, "arch": config.arch, "state_dict": state, "optimizer": optimizer.state_dict()}


def _resume(path: Path, model: MoCo, loss_of: nn.Module, optimizer) -> int:
    from ssl_kd.checkpoint import read

    saved = read(path)
    state = {k.removeprefix("module."): v for k, v in saved["state_dict"].items()}
    bank = loss_of.memory_bank
    device = next(model.parameters()).device
    bank.bank = state.pop("queue").T.contiguous().to(device)
    bank.bank_ptr = state.pop("queue_ptr").to(device)
    model.load_state_dict(state)
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["epoch"])
