"""A student as a folder that timm, the Hugging Face hub, torch.hub and `load_encoder` all read.

    ssl-kd export runs/x/student.safetensors --to hub --out my-student/
    model = timm.create_model("local-dir:my-student", pretrained=True)          # once uploaded: "hf-hub:you/my-student"
    encoder = ssl_kd.load_encoder("my-student")

config.json and model.safetensors are timm's layout (the weights' header holds our record as well), preprocessor_config.json
is transformers' way to tell the pixels, hubconf.py serves torch.hub, README.md is the card. timm reads the folder back, and
it is thrown away unless the network says the same.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssl_kd.checkpoints.folders import TEACHERS
from ssl_kd.checkpoints.licences import warning
from ssl_kd.checkpoints.saving import save_student
from ssl_kd.errors import UserError, one_line
from ssl_kd.exporters.equivalents import stem_lines, timm_twin
from ssl_kd.models.encoder import Encoder
from ssl_kd.models.factory import OUR_ARGUMENTS
from ssl_kd.runtime.files import atomically
from ssl_kd.runtime.ownership import Kind, mark, require_ours

WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.json", "preprocessor_config.json", "hubconf.py", "README.md")
FOLDER = Kind("hub", "out", "an exported student's folder", FILES, lambda _: False)
BORNE = ("positions", "interleave")  # ours, and of no effect on what timm computes at the student's own size
HUBCONF = '''"""torch.hub.load("FOLDER OR OWNER/REPOSITORY", "student", source="local" or "github"); needs timm."""

from pathlib import Path

dependencies = ["timm", "torch"]


def student(pretrained=True, **arguments):
    """The student as a torch.nn.Module: pixels normalised by mean and std (B, 3, S, S) to embeddings (B, D)."""
    import timm

    return timm.create_model(f"local-dir:{Path(__file__).parent}", pretrained=pretrained, **arguments)
'''


def write_hub(
    encoder: Encoder, folder: Path, notes: Mapping[str, object], images: Tensor, bound: float, figures: str = ""
) -> float:
    """Write the folder and return the largest difference, as a share of the largest number.

    figures: what was measured of the student, as markdown for its card.

    UserError, and nothing written, where timm has no such network, the folder is not ours, or timm's answer differs.
    """
    arguments = timm_arguments(encoder)
    require_ours(folder, FOLDER)
    with tempfile.TemporaryDirectory(prefix="ssl_kd.hub.") as made:
        _fill(encoder, Path(made), arguments, notes, figures)
        difference = _difference(encoder, Path(made), images)
        if not difference <= bound:
            raise UserError(
                f"hub: not kept: timm's network differs by {difference:.1g} of the largest number (bound {bound:g}); "
                f"export to safetensors, which holds the encoder as it is"
            )
        mark(folder, FOLDER)
        for name in FILES:
            content = (Path(made) / name).read_bytes()
            atomically(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return difference


def timm_arguments(encoder: Encoder) -> dict[str, object]:
    """What timm's own call needs to build the network, as JSON holds it. UserError where it cannot."""
    timm_twin(encoder)
    ours = {key: value for key, value in encoder.arch_args.items() if key in OUR_ARGUMENTS}
    if stem_lines(encoder, ours) or set(ours) - set(BORNE):
        named = ", ".join(sorted(set(ours) - set(BORNE)))
        raise UserError(f"hub: timm has no argument for {named} of this student; export to timm, whose card says how")
    if encoder.feature != encoder.network.default:
        raise UserError(
            f"hub: timm's network gives {encoder.network.default}, and this student {encoder.feature}; export to onnx"
        )
    return {key: value for key, value in encoder.arch_args.items() if key not in OUR_ARGUMENTS}


def _fill(
    encoder: Encoder, folder: Path, arguments: Mapping[str, object], notes: Mapping[str, object], figures: str
) -> None:
    save: Callable[..., Path] = save_student
    save(encoder, folder / WEIGHTS, heads={}, **notes)  # timm refuses tensors that its network has no place for
    eyes = encoder.preprocessing
    side = eyes.crop or eyes.size
    config: dict[str, object] = {
        "architecture": encoder.arch.rpartition("/")[2],
        "num_classes": 0,
        "num_features": int(getattr(encoder.backbone, "num_features", encoder.dim)),
        "model_args": dict(arguments),
        "pretrained_cfg": {
            "tag": "ssl_kd",
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "interpolation": eyes.interpolation,
            "crop_pct": side / (eyes.resize or side),
            "crop_mode": "center",
            "mean": list(eyes.mean),
            "std": list(eyes.std),
            "num_classes": 0,
        },
    }
    if isinstance(pool := getattr(encoder.backbone, "global_pool", None), str):  # of ViTs; others hold a module
        config["global_pool"] = pool
    names = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
    pixels = {
        "image_processor_type": "CLIPImageProcessor",  # the one that resizes the shorter side and then crops
        "do_resize": eyes.resize is not None,
        "size": {"shortest_edge": eyes.resize or side},
        "resample": names[eyes.interpolation],
        "do_center_crop": eyes.crop is not None,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(eyes.mean),
        "image_std": list(eyes.std),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels, indent=1))
    (folder / "hubconf.py").write_text(HUBCONF)
    (folder / "README.md").write_text(readme(encoder, notes, figures), "utf-8", "backslashreplace")


def _difference(encoder: Encoder, folder: Path, images: Tensor) -> float:
    """How far timm's network of this folder is from the encoder, as a share of the largest number."""
    import timm

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        own = encoder(images).embedding.double()
        said = model(encoder.normalise(images)).flatten(1).double()
    if said.shape != own.shape:
        raise UserError(f"hub: not kept: timm's network gives {tuple(said.shape)}, the encoder {tuple(own.shape)}")
    return float((said - own).abs().max() / own.abs().max().clamp_min(1e-30))


def licence_of(notes: Mapping[str, object]) -> str:
    """The licence of the teacher's weights, or of each, as the student's own record has it; nothing where it has none."""
    said = notes.get("teacher_licence", "")
    named = list(said.values()) if isinstance(said, Mapping) else [str(said)]
    return ", ".join(dict.fromkeys(one_line(one, 200) for one in named if one))


def readme(encoder: Encoder, notes: Mapping[str, object], figures: str = "") -> str:
    """The folder's card: what it is, how it was made, with which figures, under whose licence, how to load it."""
    none = "None were given (`ssl-kd export ... --to hub --figures FOLDER_OF_SSL_KD_EVAL`)."
    eyes = encoder.preprocessing
    story = "\n".join(f"| {one_line(key)} | {_told(value)} |" for key, value in notes.items())
    licence = licence_of(notes)
    front = f"\n{TEACHERS}: {json.dumps(licence)}" if licence else ""
    binds = licence or "not recorded; look at the teacher's own page before you share the student"
    binds = "\n\n".join(filter(None, [binds, warning([licence])]))
    spaces = "".join(
        f"\nFor queries to an index of its {name} take the student's own file: the head that leads into that space is not in this folder, "
        f"where timm would refuse it.\n"
        for name in encoder.heads
    )
    resized = f"resize the shorter side to {eyes.resize}, " if eyes.resize else ""
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
tags: [image-feature-extraction, timm, knowledge-distillation, self-supervised]{front}
---

# {encoder.arch}, distilled without labels

{encoder.parameter_count:,} parameters; an image becomes {encoder.dim} numbers. Made by ssl_kd from a teacher; no label was seen.

Licence of the teacher's weights, which may bind the student: {binds}

```python
import timm

model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()  # uploaded: "hf-hub:OWNER/NAME"
pixels = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

or `ssl_kd.load_encoder("THIS_FOLDER")`, or `torch.hub.load("THIS_FOLDER", "student", source="local")`.

Pixels: RGB, {resized}{eyes.interpolation}, centre crop {eyes.crop or eyes.size}, mean {eyes.mean}, std {eyes.std}.
{spaces}
## How it was made

| | |
| --- | --- |
{story or "| not recorded | - |"}
| weights | SHA-256 {encoder.digest} |

## Figures

{figures or none}

On your own photos: `ssl-kd certify THIS_FOLDER/model.safetensors --images PHOTOS --teacher TEACHER`.
"""


def _told(value: object) -> str:
    return one_line(value, 300).replace("|", "\\|")
