"""A folder as Hugging Face's transformers or timm leave it: weights, architecture, pixels and licence, read together.

    model.safetensors or pytorch_model.bin, one file or shards with an index
    config.json                 transformers' (`model_type`) or timm's (`architecture`, `model_args`, `pretrained_cfg`)
    preprocessor_config.json    transformers' pixels; timm's are in pretrained_cfg
    README.md                   the licence, in its front matter; the name, where it loads a known network (`cards`)

A snapshot in the local cache of the hub is such a folder, and so is `models--ORG--NAME` above it. Where its files disagree
the folder is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from ssl_kd.checkpoints.cards import card_of, loads_itself_as
from ssl_kd.checkpoints.licences import stated
from ssl_kd.checkpoints.shards import INDEX, read_json
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, UserError, one_line
from ssl_kd.models.preprocessing import Preprocessing, timm_pixels
from ssl_kd.runtime.run_dir import STUDENT

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".onnx", ".xml")  # of files to name in a message
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
CONFIG, PROCESSOR, README = "config.json", "preprocessor_config.json", "README.md"
TEACHERS = "teacher_licence"  # in a README's front matter: whose licence may bind a student, as `ssl-kd export --to hub` writes it
LARGEST = 1 << 22  # bytes of a file of settings
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers


@dataclass(frozen=True)
class Folder:
    """What lies in a folder beside the weights."""

    path: Path
    weights: Path
    config: Mapping[str, object] = field(default_factory=dict)
    processor: Mapping[str, object] | None = None
    front: Mapping[str, object] = field(default_factory=dict)  # of the README
    name: str = ""  # ORG/NAME on the hub, where that is known

    @property
    def timms(self) -> bool:
        """Whether timm wrote it."""
        return isinstance(self.config.get("architecture"), str)

    @property
    def pretrained(self) -> Mapping[str, object]:
        """timm's pretrained_cfg, which older files keep flat."""
        found = self.config.get("pretrained_cfg", self.config)
        return found if isinstance(found, Mapping) else {}

    @property
    def licence(self) -> str:
        """As the README or the config says it; nothing where neither does."""
        named = self.front.get("license_name") if self.front.get("license") in (None, "other") else None
        own = stated(named) or stated(self.front.get("license")) or stated(self.pretrained.get("license"))
        return own or stated(self.front.get(TEACHERS))

    @property
    def feature(self) -> str | None:
        """What the card of a known network says is evaluated; None for the network's own."""
        card = card_of(self.name)
        return (card.feature or None) if card else None

    def pixels(self) -> Preprocessing | None:
        """What the folder says of its pixels, or the card of a known network; None where neither does.

        A pretrained_cfg without crop_pct does not say how images are resized.
        """
        card = card_of(self.name)
        known = card.pixels if card else None
        if self.timms:
            own = timm_pixels(self.pretrained)
            unsaid = known and "crop_pct" not in self.pretrained and (own.mean, own.std) == (known.mean, known.std)
            return known if unsaid else own
        return known if self.processor is None else processor_pixels(self.processor)


def open_folder(path: Path, name: str = "", weights: str = "") -> Folder:
    """The folder, or the newest snapshot in a hub's cache folder. CheckpointError where it holds no such network.

    weights: the name of one of its files, where that was named and not the folder.
    """
    path = snapshot(path)
    found = [weights] if weights else [file for file in WEIGHTS if (path / file).exists()]
    for whole, index in (WEIGHTS[:2], WEIGHTS[2:]):
        if whole in found and index in found:
            raise CheckpointError(f"holds both {whole} and {index}, which may disagree; name one of the two files")
    if not found:
        files = sorted(one_line(file.name) for file in path.iterdir() if file.is_file())
        likely = [name for name in (STUDENT, *files) if name in files and name.lower().endswith(ENDINGS)]
        inside = f" (it holds {', '.join(files[:4])})" if files else ""
        such = f": {one_line(path)}/{likely[0]}" if likely else inside
        raise CheckpointError(f"is a folder without {', '.join(WEIGHTS)}; name the checkpoint file in it{such}")
    config = read_json(path / CONFIG, LARGEST) if (path / CONFIG).exists() else {}
    processor = read_json(path / PROCESSOR, LARGEST) if (path / PROCESSOR).exists() else None
    readme = readable(path / README)
    name = name or named(path, config) or loads_itself_as(readme)
    return Folder(path, path / found[0], config, processor, front_matter(readme), name)


def snapshot(path: Path) -> Path:
    """The snapshot that a hub's cache folder (models--ORG--NAME) points at; any other folder as it is."""
    if not (path / "snapshots").is_dir() or not path.name.startswith("models--"):
        return path
    main = path / "refs" / "main"
    commits = sorted(one.name for one in (path / "snapshots").iterdir() if one.is_dir())
    commit = main.read_text()[:80].strip() if main.is_file() else ""
    if commit in commits:
        return path / "snapshots" / commit
    if len(commits) == 1:
        return path / "snapshots" / commits[0]
    raise CheckpointError(f"holds {len(commits)} snapshots and none called main; name one of the folders in snapshots/")


def named(path: Path, config: Mapping[str, object]) -> str:
    """ORG/NAME, from the cache folder's name or what the config says."""
    for part in (path.name, path.parent.parent.name):
        if match := re.fullmatch(r"models--([\w.-]+?)--([\w.-]+)", part):
            return f"{match[1]}/{match[2]}"
    inside = config.get("pretrained_cfg")
    for said in (config.get("_name_or_path"), inside.get("hf_hub_id") if isinstance(inside, Mapping) else None):
        if isinstance(said, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", said):
            return said
    return ""


def readable(readme: Path) -> str:
    """The text of a README; nothing where there is none that can be read."""
    try:
        with open(readme, encoding="utf-8", errors="replace") as file:
            return file.read(LARGEST)
    except OSError:
        return ""


def front_matter(readme: str) -> dict[str, object]:
    """The YAML between the two lines of dashes at a README's begin; nothing where there is none that can be read."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", readme, re.DOTALL)
    if not match:
        return {}
    import yaml

    try:
        found = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def processor_pixels(given: Mapping[str, object]) -> Preprocessing:
    """What transformers' image processor does. UserError for what is not done here, BrokenCheckpoint for nonsense."""
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "ViTImageProcessor")
    if (
        given.get("do_rescale", True) is False
        or not 254 < 1 / float(cast(float, given.get("rescale_factor") or 1 / 255)) < 256
    ):
        raise UserError(f"{PROCESSOR}: pixels are not scaled to [0, 1] by it; such networks are not read here")
    if "crop_pct" in given:
        raise UserError(f"{PROCESSOR}: its crop_pct ({kind}) is not done here; give mean, std and size by hand")
    try:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if given.get("do_normalize", True):
            mean, std = _three(given["image_mean"]), _three(given["image_std"])
        resample = int(cast(int, given.get("resample", 3 if "Bit" in kind else 2)))
        how = RESAMPLING[resample]
        side, square = _side(given.get("size"), kind) if given.get("do_resize", True) else (None, False)
        crop = _crop(given) if given.get("do_center_crop", False) else None
        size = crop or side or 224
        return Preprocessing(mean, std, size, side, crop or (size if side else None), how, square)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, UserError):
            raise type(error)(f"{PROCESSOR}: {error}") from error
        raise BrokenCheckpoint(f"{PROCESSOR}: cannot be used: {one_line(repr(error), 100)}") from error


def _three(given: object) -> tuple[float, float, float]:
    """Three numbers; TypeError for what is no list. What they are is `Preprocessing`'s to say."""
    return cast(tuple[float, float, float], tuple(cast(Iterable[float], given)))


def _side(size: object, kind: str) -> tuple[int, bool]:
    """The side that images are resized to, and whether both sides are. A number alone is a square for ViTs."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"]), False
        if size["height"] != size["width"]:
            raise UserError(f"size is {size['height']} x {size['width']}; only squares are read here")
        return int(size["height"]), True
    return int(cast(int, size)), "ViT" in kind or "DINO" in kind


def _crop(given: Mapping[str, object]) -> int:
    crop = given.get("crop_size", 224)
    if isinstance(crop, Mapping):
        if crop["height"] != crop["width"]:
            raise UserError(f"crop_size is {crop['height']} x {crop['width']}; only squares are read here")
        crop = crop["height"]
    return int(cast(int, crop))
