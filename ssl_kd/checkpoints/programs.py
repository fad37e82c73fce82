"""Programs as Encoders: an .onnx file, or OpenVINO's .xml with its .bin, with the card that says what to feed it.

    encoder = load_encoder("student.onnx")           # of `ssl-kd export`: its card is in it, and in student.onnx.json
    encoder = load_encoder("theirs.onnx")            # of anybody, with a card theirs.onnx.json written by hand

A card for a file of somebody else's holds what the file cannot say:

    {"preprocessing": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": 224, "resize": 256,
                       "crop": 224, "interpolation": "bicubic"}, "pixels": "normalised"}

`pixels` is "normalised" where the caller subtracts mean and divides by std, "plain" where the file does so itself.

The file is data, read by onnx and run by onnxruntime or OpenVINO. A graph that names other files, operators of unknown
makers, loops and functions, or tensors beyond reason is refused before it runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ssl_kd.checkpoints.formats.report import Report
from ssl_kd.checkpoints.licences import UNSTATED, stated
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, UnsafeCheckpoint, UserError, one_line
from ssl_kd.models.encoder import Encoder
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.models.program import PROGRAM, Program, ProgramNet, Runner
from ssl_kd.models.space import Space
from ssl_kd.runtime.download import digest_of

if TYPE_CHECKING:
    import onnx

KINDS = {".onnx": "onnx", ".xml": "openvino"}
MAKERS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")
ENDLESS = ("Loop", "Scan", "If", "SequenceMap", "TensorIterator")  # may run for ever, or hide other graphs
LARGEST = 2**31  # bytes of one tensor for one image
CARD = 2**24  # bytes of a card
NORMALISED, PLAIN = "normalised", "plain"


def is_program(path: Path) -> bool:
    """Whether a path names a program that `load_program` reads."""
    return path.suffix.lower() in KINDS and path.is_file()


def load_program(path: Path, feature: str | None = None) -> Encoder:
    """The Encoder of a program, with the preprocessing of its card. CheckpointError for a file that cannot be one."""
    kind = KINDS[path.suffix.lower()]
    start = partial({"onnx": start_onnx, "openvino": start_openvino}[kind], path)
    try:
        network = ProgramNet(Program(start), "embedding")
        card = card_of(path, network.backbone.runner)
        network.default = str(card.get("feature", network.default))
        eyes = _pixels(card, network.size)
        # Its own name, or none: a program has one answer and cannot be asked for another.
        encoder = Encoder(network, f"{PROGRAM}{kind}", {}, feature, eyes, origin(path, card))
        encoder.licence = stated(card.get("licence")) or UNSTATED
        encoder.answers_in = _space(card, encoder.dim)
        return encoder
    except UserError as error:
        raise (error if str(error).startswith(str(path)) else type(error)(f"{path}: {error}")) from error


def describe_program(path: Path) -> Report:
    """What a program is, or in `problem` why it cannot be an Encoder."""
    kind = KINDS[path.suffix.lower()]
    report: Callable[..., Report] = partial(Report, path=str(path), container=kind, bytes=path.stat().st_size)
    try:
        encoder = load_program(path)
    except CheckpointError as error:
        return report(problem=str(error))
    return report(
        format=kind,
        family="program",
        wrote="a finished program, run on the CPU",
        origin=encoder.origin,
        branch="the whole file",
        arch=encoder.arch,
        feature=encoder.feature,
        dim=encoder.dim,
        preprocessing=encoder.preprocessing,
        parameters=encoder.parameter_count,
        digest=encoder.digest,
        spaces={encoder.feature: str(encoder.answers_in)} if encoder.answers_in else {},
        licence=encoder.licence,
    )


def origin(path: Path, card: Mapping[str, object]) -> str:
    """Where a program came from, in words."""
    made_of = one_line(card.get("arch", ""))
    return f"{path.name}, {one_line(card.get('format', path.suffix[1:]))}" + (f" of {made_of}" if made_of else "")


# ------------------------------------------------------------------------------------------------- cards


def card_of(path: Path, runner: Runner) -> dict[str, object]:
    """What is known of a program: FILE.json beside it, else the card inside the file. CheckpointError where there is none."""
    beside = path.with_name(f"{path.name}.json")
    text = _text(beside) if beside.is_file() else inner_card(path, runner.file)
    if not text:
        raise CheckpointError(
            f'has no card; write {beside.name} beside it: {{"preprocessing": {{"mean": [..], "std": [..], "size": '
            f'{runner.size}, "resize": .., "crop": {runner.size}, "interpolation": "bicubic"}}, "pixels": "normalised" or '
            f'"plain"}}'
        )
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"its card is no JSON ({one_line(error)})") from error
    if not isinstance(card, dict) or not isinstance(card.get("preprocessing"), dict):
        raise BrokenCheckpoint("its card has no preprocessing; expected mean, std, size, resize, crop, interpolation")
    if "sha256" in card and beside.is_file() and digest_of(path) not in (card["sha256"], card.get("replaced_sha256")):
        raise BrokenCheckpoint(f"{beside.name} is the card of another file; export again")
    return card


def _text(path: Path) -> str:
    if path.stat().st_size > CARD:
        raise BrokenCheckpoint(f"{path.name} is too large for a card")
    return path.read_text(errors="replace")


def inner_card(path: Path, file: bytes) -> str:
    """The card that an exported ONNX file carries; empty where there is none."""
    if KINDS[path.suffix.lower()] != "onnx":
        return ""
    import onnx

    model = onnx.ModelProto.FromString(file)
    return next((entry.value for entry in model.metadata_props if entry.key == "card"), "")


def _space(card: Mapping[str, object], dim: int) -> Space | None:
    """Whose space the program answers in, where it ends in a head into another network's; None: its own."""
    if "space" not in card:
        return None
    try:
        space = Space.from_record(card["space"])
        Preprocessing.from_key(space.pixels)
    except ValueError as error:
        raise BrokenCheckpoint(f"its card's space cannot be read: {error}") from error
    if space.width != dim:
        raise BrokenCheckpoint(f"its card's space is {space.width} wide, and the file gives {dim} numbers")
    return space


def _pixels(card: Mapping[str, object], size: int) -> Preprocessing:
    """The card's preprocessing; mean and std are left to the file where it applies them itself."""
    try:
        given = card["preprocessing"]
        if not isinstance(given, Mapping):
            raise TypeError(f"preprocessing: {given!r}")
        needed = {name: given[name] for name in ("mean", "std", "size", "resize", "crop", "interpolation")}
        others = {one.name: given[one.name] for one in fields(Preprocessing) if one.name in given}
        eyes = Preprocessing.from_dict(needed | others)
    except (KeyError, TypeError) as error:
        raise BrokenCheckpoint(f"its card's preprocessing lacks or misstates {one_line(error)}") from error
    if (eyes.crop or eyes.size) != size:
        raise BrokenCheckpoint(f"its card crops to {eyes.crop or eyes.size} px, and the file takes {size}")
    said = str(card.get("pixels") or card.get("input", ""))
    if said != PLAIN and "normalis" not in said:
        raise BrokenCheckpoint(f'its card says pixels {one_line(said)!r}; expected "{NORMALISED}" or "{PLAIN}"')
    itself = said == PLAIN or "itself normalises" in said
    return replace(eyes, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)) if itself else eyes


# ------------------------------------------------------------------------------------------------- onnx


def start_onnx(path: Path) -> Runner:
    """An onnxruntime session on the CPU. CheckpointError for a graph that is broken, unsafe or of other shapes."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("needs onnxruntime, which is not installed; pip install 'ssl-kd[export]'") from error
    file = path.read_bytes()
    parameters = check_graph(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds, all of them about the file
        raise BrokenCheckpoint(f"onnxruntime cannot start it: {one_line(error, 160)}") from error
    given, name = session.get_inputs(), session.get_outputs()[0].name
    if len(given) != 1:
        raise CheckpointError(f"takes {len(given)} inputs; expected one, images (B, 3, S, S)")
    batch, size = _sides(given[0].shape, given[0].type == "tensor(float)")

    def ask(pixels: np.ndarray) -> np.ndarray:
        try:
            return _rows(session.run([name], {given[0].name: pixels})[0])
        except UserError:
            raise
        except Exception as error:
            raise BrokenCheckpoint(f"onnxruntime stopped while it ran: {one_line(error, 160)}") from error

    width = ask(np.full((batch or 1, 3, size, size), 0.5, np.float32)).shape[1]
    return Runner(ask, file, width, size, parameters, batch)


def _sides(shape: Iterable[object], floats: bool) -> tuple[int, int]:
    """Batch (0: any) and side of an input. CheckpointError for other shapes than (B, 3, S, S) of float32."""
    shape = list(shape)
    side = shape[2] if len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] else None
    if not isinstance(side, int) or not floats or not 0 < side < 2**14:
        raise CheckpointError(
            f"takes {one_line(shape)}{'' if floats else ', not float32'}; expected float32 images (B, 3, S, S)"
        )
    batch = shape[0]
    return (batch if isinstance(batch, int) and batch > 0 else 0), side


def _rows(answer: np.ndarray) -> np.ndarray:
    """(B, D) as it is, a map (B, D, H, W) averaged. CheckpointError for anything else."""
    found = np.asarray(answer)
    if found.ndim == 4:
        found = found.mean((2, 3))
    if found.ndim != 2 or found.dtype.kind != "f":
        raise CheckpointError(f"gives {found.dtype} of shape {found.shape}; expected embeddings (B, D)")
    return found.astype(np.float32, copy=False)


def check_graph(file: bytes) -> int:
    """The numbers that a graph holds as weights. UnsafeCheckpoint for one that reads files, may not end or floods memory."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(file)
    except Exception as error:
        raise BrokenCheckpoint("is no ONNX file, or a damaged one") from error
    if not model.graph.node:
        raise BrokenCheckpoint("is no ONNX file, or an empty one")
    for node in model.graph.node:
        if node.op_type in ENDLESS or any(a.HasField("g") or a.graphs for a in node.attribute):
            raise UnsafeCheckpoint(f"holds a graph in a graph ({one_line(node.op_type)}), which may never end")
        if node.domain not in MAKERS:
            raise UnsafeCheckpoint(f"uses operators of {one_line(node.domain)}, which are not known here")
    tensors = [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute if a.HasField("t"))]
    if model.functions or model.graph.sparse_initializer:
        raise UnsafeCheckpoint("holds functions or sparse tensors of its own; export it without")
    if any(tensor.external_data or tensor.data_location for tensor in tensors):
        raise UnsafeCheckpoint("keeps its weights in other files; save it as one file")
    _check_sizes(model)
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) > 1)


def _check_sizes(model: onnx.ModelProto) -> None:
    """UnsafeCheckpoint for a tensor beyond LARGEST, as far as shapes can be told without running anything."""
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # operators of onnxruntime's own have no shapes here
        return
    for value in (*graph.value_info, *graph.output):
        sides = [side.dim_value or 1 for side in value.type.tensor_type.shape.dim]
        if 4 * math.prod(sides) > LARGEST:
            raise UnsafeCheckpoint(f"asks for a tensor of {one_line(sides)}, more than 2 GB for one image")


# ------------------------------------------------------------------------------------------------- openvino


def start_openvino(path: Path) -> Runner:
    """A compiled OpenVINO model on the CPU. CheckpointError as for `start_onnx`."""
    try:
        import openvino
    except ImportError as error:
        raise UserError("needs openvino, which is not installed; pip install 'ssl-kd[openvino]'") from error
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise CheckpointError(f"lacks {weights.name}, where its weights are; keep both files together")
    graph, numbers = path.read_bytes(), weights.read_bytes()
    core = openvino.Core()
    try:
        model = core.read_model(graph, numbers)
        if endless := {op.get_type_name() for op in model.get_ops()} & set(ENDLESS):
            raise UnsafeCheckpoint(f"holds a graph in a graph ({', '.join(endless)}), which may never end")
        sides = model.input(0).get_partial_shape()
        shape = [side.get_length() if side.is_static else None for side in sides]
        floats = model.input(0).get_element_type() == openvino.Type.f32
        network = core.compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            },
        )
    except UserError:
        raise
    except Exception as error:
        raise BrokenCheckpoint(f"OpenVINO cannot start it: {one_line(error, 160)}") from error
    batch, size = _sides(shape, floats)

    def ask(pixels: np.ndarray) -> np.ndarray:
        return _rows(np.array(network(pixels)[0]))

    width = ask(np.full((batch or 1, 3, size, size), 0.5, np.float32)).shape[1]
    parameters = sum(math.prod(op.get_output_shape(0)) for op in model.get_ops() if op.get_type_name() == "Constant")
    return Runner(ask, graph + numbers, width, size, parameters, batch)
