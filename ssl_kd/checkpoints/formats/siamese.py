"""ResNets of SimSiam, Barlow Twins, VICReg and BYOL, published and training files.

What lies beside the backbone tells them apart: SimSiam's predictor, Barlow Twins' norm without weights, the biases of
VICReg's projector, BYOL's online network. Alone, Barlow Twins' and VICReg's `resnet50.pth` have the names of DINO's
ResNet-50. Nothing in them is sure; but theirs were saved from a GPU and DINO's was not, which decides the resizing.
"""

from __future__ import annotations

from dataclasses import replace

from ssl_kd.checkpoints.formats import resnets
from ssl_kd.checkpoints.formats.lightning import NUMBERED
from ssl_kd.checkpoints.formats.simclr import STHALLES_PIXELS
from ssl_kd.checkpoints.formats.weights import Contents, Format, Place, State, Weights, find, must, rename, select
from ssl_kd.models.preprocessing import Preprocessing

PREDICTORS = ("module.predictor.", "predictor.")
PROJECTORS = ("module.projector.", "projector.")


def simsiam_place(file: Contents) -> Place | None:
    """`encoder` with its projector inside, as fc, beside a predictor; or that encoder with nothing beside it."""
    file = file.without_values()
    whole = file.state("state_dict")
    place = find(file, resnets.is_resnet, [("state_dict",)], ("module.encoder.", "encoder."))
    if place is None:
        return resnets.bare(file) if file.vouched else None
    inside = any(name.startswith("fc.") for name in place.state)
    alone = all(name.startswith((place.prefix, *PREDICTORS)) for name in whole)
    return place if inside or alone else None


def convert_simsiam(file: Contents) -> Weights:
    """The encoder without its projector."""
    sure = any(name.startswith(PREDICTORS) for name in file.without_values().state("state_dict"))
    return resnets.read_at(file, must(simsiam_place(file), "SimSiam's ResNet"), "SimSiam", resnets.IMAGENET, sure=sure)


def projector(file: Contents) -> State:
    """The projector of a run of Barlow Twins or VICReg; the names of its tensors are all that is used."""
    whole = file.without_values().state("model")
    return next((found for prefix in PROJECTORS if (found := select(whole, prefix))), {})


def joint_place(file: Contents) -> Place | None:
    """Where runs of both methods keep the backbone."""
    if not projector(file):
        return None
    return find(file, resnets.is_resnet, [("model",)], ("module.backbone.", "backbone."))


def is_vicreg(file: Contents) -> bool:
    """VICReg's linear layers have a bias, Barlow Twins' have none."""
    return "0.bias" in projector(file)


def matches_barlow(file: Contents) -> bool:
    """A run with a projector that is not VICReg's, or a bare ResNet that was saved from a GPU."""
    flat = resnets.bare(file) is not None and (file.vouched or resnets.from_gpu(file))
    return flat or (joint_place(file) is not None and (file.vouched or not is_vicreg(file)))


def matches_vicreg(file: Contents) -> bool:
    """A run with biases in its projector; where somebody vouches for it, any ResNet that lies alone."""
    if file.vouched:
        return joint_place(file) is not None or resnets.bare(file) is not None
    return joint_place(file) is not None and is_vicreg(file)


def convert_barlow(file: Contents) -> Weights:
    """Barlow Twins' run keeps the statistics of a norm without weights."""
    names = file.without_values().state("model")
    sure = any(name.removeprefix("module.") == "bn.running_mean" for name in names)
    place = must(joint_place(file) or resnets.bare(file), "a ResNet")
    return resnets.read_at(file, place, "Barlow Twins", resnets.IMAGENET, sure=sure)


def convert_vicreg(file: Contents) -> Weights:
    """Its widths above 1 widen every stage."""
    place = must(joint_place(file) or resnets.bare(file), "a ResNet")
    return resnets.read_at(file, place, "VICReg", resnets.IMAGENET, sure=bool(projector(file)))


# Programs that train BYOL in PyTorch, each read in its source: where it keeps the online network's backbone, whose it is, and
# the pixels that it trains and evaluates on. sthalles/PyTorch-BYOL scales to [0, 1] and no more, and measures STL-10 at 96 px;
# lucidrains/byol-pytorch normalises within its views. Its Lightning example keeps the learner as `learner`.
BYOL_PLACES = (
    (("online_network_state_dict",), "encoder.", "BYOL (sthalles)", STHALLES_PIXELS),
    ((), "online_encoder.net.", "BYOL", resnets.IMAGENET),
    (("state_dict",), "online_encoder.net.", "BYOL", resnets.IMAGENET),
    (("state_dict",), "learner.online_encoder.net.", "BYOL", resnets.IMAGENET),
)


def byol_place(file: Contents) -> tuple[Place, State, str, Preprocessing] | None:
    """The online backbone as the file names it, and in torchvision's names, which some number instead; whose, its pixels."""
    for path, prefix, whose, pixels in BYOL_PLACES:
        if place := find(file, lambda state: "conv1.weight" in state or "0.weight" in state, [path], (prefix,)):
            state = rename(place.state, NUMBERED) if "0.weight" in place.state else place.state
            if resnets.is_resnet(state):
                return place, state, whose, pixels
    return None


def convert_byol(file: Contents) -> Weights:
    """The online network's backbone."""
    found = byol_place(file)
    if found is None:
        return resnets.read_at(file, must(resnets.bare(file), "BYOL's ResNet"), "BYOL", resnets.IMAGENET)
    place, state, whose, pixels = found
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    weights = resnets.read_resnet(replace(file, nodes=kept), whose, pixels)
    used = {path: tensor for path, tensor in place.used.items() if not path.startswith(f"{place.where}fc.")}
    return replace(weights, branch=place.where, used=used)


SIMSIAM = Format(
    "simsiam",
    "simsiam",
    "facebookresearch/simsiam `checkpoint_*.pth.tar`, published and own runs",
    "encoder; pooled map",
    resnets.IMAGENET,
    lambda file: simsiam_place(file) is not None,
    convert_simsiam,
)
BARLOW = Format(
    "barlow",
    "barlow",
    "facebookresearch/barlowtwins: full checkpoints, own runs; any bare ResNet saved from a GPU, of unknown origin",
    "backbone; pooled map",
    resnets.IMAGENET,
    matches_barlow,
    convert_barlow,
)
VICREG = Format(
    "vicreg",
    "vicreg",
    "facebookresearch/vicreg: full checkpoints, own runs; its `resnet50.pth` alone with format=vicreg",
    "backbone; pooled map",
    resnets.IMAGENET,
    matches_vicreg,
    convert_vicreg,
)
BYOL = Format(
    "byol",
    "byol",
    "BYOL in PyTorch: lucidrains/byol-pytorch learners (`online_encoder.`, also of its Lightning example); "
    "sthalles/PyTorch-BYOL `model.pth`, in plain [0, 1] at 96 px",
    "online network; pooled map",
    resnets.IMAGENET,
    lambda file: byol_place(file) is not None,
    convert_byol,
)
