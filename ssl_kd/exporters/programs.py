"""Whole programs for others: ONNX and OpenVINO, in float32, float16 and int8; pixels in [0, 1] in, embeddings out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_kd.errors import UserError, one_line
from ssl_kd.exporters.constants import fixed_positions
from ssl_kd.exporters.judge import Ask, Judge
from ssl_kd.exporters.pictures import pictures
from ssl_kd.models.encoder import Encoder
from ssl_kd.types import Features

ONNX_BYTES = 2**31 - 2**24  # of weights: a protobuf message ends at 2 GB, and the graph needs some
WEIGHTS = ".bin"  # of an OpenVINO model, beside its .xml


class Pixels(nn.Module):
    """Images in [0, 1] to embeddings: all that a program without ssl_kd needs, mean and std included."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        features: Features = self.encoder(images)
        return features.embedding


def example(encoder: Encoder) -> Tensor:
    """Two pictures of the encoder's size, to trace it with."""
    return pictures(2, encoder.preprocessing.size, seed=1)


def _needs(format_: str, extra: str, *packages: str) -> None:
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise UserError(f"{format_}: needs {package}, which is not installed; pip install '{extra}'") from error


# ------------------------------------------------------------------------------------------------- onnx


def onnx_lines(encoder: Encoder) -> tuple[str, ...]:
    """What to type to run an ONNX file; UserError where it cannot be written."""
    _needs("onnx", "ssl-kd[export]", "onnx", "onnxscript", "onnxruntime")
    if sum(t.numel() * t.element_size() for t in encoder.backbone.state_dict().values()) > ONNX_BYTES:
        raise UserError(f"onnx: one file holds at most 2 GB and {encoder.arch} is larger; export to torchscript")
    return (
        "import onnxruntime",
        "session = onnxruntime.InferenceSession(FILE)",
        "model = lambda images: session.run(None, {'images': images})[0]",
    )


def write_onnx(encoder: Encoder, path: Path, card: Mapping[str, Any]) -> None:
    """Write the float32 file, with its card inside."""
    import onnx

    try:
        with fixed_positions(encoder):
            program = torch.onnx.export(
                Pixels(encoder).eval(),
                (example(encoder),),
                dynamo=True,
                input_names=["images"],
                output_names=["embedding"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
        model = program.model_proto  # type: ignore[union-attr]
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"onnx: torch cannot export {encoder.arch}: {one_line(error, 200)}") from error
    onnx.helper.set_model_props(model, {"card": json.dumps(card)})
    path.write_bytes(model.SerializeToString())


def reload_onnx(encoder: Encoder, path: Path) -> Ask:
    """The file as onnxruntime runs it."""
    from ssl_kd.exporters.int8 import program

    return program(path.read_bytes())


def _with_props(model: bytes, path: Path) -> None:
    """Put a changed model in a file's place; the card inside stays."""
    import onnx

    props = {entry.key: entry.value for entry in onnx.ModelProto.FromString(path.read_bytes()).metadata_props}
    changed = onnx.ModelProto.FromString(model)
    onnx.helper.set_model_props(changed, props)
    path.write_bytes(changed.SerializeToString())


def shrink_onnx(path: Path, judge: Judge) -> dict[str, Any]:
    """Make a float ONNX file int8 in place, and say which nodes stayed float."""
    from ssl_kd.exporters.int8 import shrink

    chosen = shrink(path, judge)
    _with_props(chosen.model, path)
    return {"floats": chosen.floats, "nodes": chosen.nodes}


def halve_onnx(path: Path, judge: Judge) -> dict[str, Any]:
    """Make the weights and the arithmetic of an ONNX file float16 in place; input and output stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights too small for float16, which become its smallest number
        model = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    _with_props(model.SerializeToString(), path)
    return {}


# ------------------------------------------------------------------------------------------------- openvino


def openvino_lines(encoder: Encoder) -> tuple[str, ...]:
    """What to type to run an OpenVINO model; UserError where it cannot be written."""
    _needs("openvino", "ssl-kd[openvino]", "openvino")
    return (
        "import openvino",
        "network = openvino.Core().compile_model(FILE, 'CPU')",
        "model = lambda images: network(images)[0]",
    )


def openvino_int8_lines(encoder: Encoder) -> tuple[str, ...]:
    """The same for int8, which needs nncf as well."""
    _needs("openvino-int8", "ssl-kd[openvino-int8]", "openvino", "nncf")
    return openvino_lines(encoder)


def weights_of(path: Path) -> Path:
    """Where a part of an OpenVINO file has its weights while it is written."""
    return path.with_name(f"{path.name}{WEIGHTS}")


def write_openvino(encoder: Encoder, path: Path, card: Mapping[str, Any]) -> None:
    """Write the graph to `path` and the float32 weights to `weights_of(path)`."""
    import openvino

    with torch.no_grad(), fixed_positions(encoder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's tracer: shapes are fixed, so what it calls constant is
        model = openvino.convert_model(Pixels(encoder).eval(), example_input=example(encoder))
    size = encoder.preprocessing.size
    model.reshape([-1, 3, size, size])
    _save(model, path)


def _save(model: Any, path: Path) -> None:
    """Write a model by OpenVINO under a name that it takes, then under ours."""
    import tempfile

    import openvino

    with tempfile.TemporaryDirectory(prefix="ssl_kd.openvino.") as folder:
        made = Path(folder) / "model.xml"
        openvino.save_model(model, made, compress_to_fp16=False)
        path.write_bytes(made.read_bytes())
        weights_of(path).write_bytes(made.with_suffix(WEIGHTS).read_bytes())


def reload_openvino(encoder: Encoder, path: Path) -> Ask:
    """The two files as OpenVINO runs them."""
    import openvino

    core = openvino.Core()
    return _ask(_compiled(core.read_model(path.read_bytes(), weights_of(path).read_bytes())))


def _compiled(model: Any) -> Any:
    import openvino

    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return openvino.Core().compile_model(model, "CPU", hints)


def _ask(network: Callable[[Any], Any]) -> Ask:
    return lambda images: torch.from_numpy(network(images.numpy())[0].copy())


def shrink_openvino(path: Path, judge: Judge) -> dict[str, Any]:
    """Make an OpenVINO model int8 in place by nncf, which puts operations back to float until the judge is content."""
    import nncf
    import openvino

    nncf.set_log_level(30)
    model = openvino.Core().read_model(path.read_bytes(), weights_of(path).read_bytes())
    photos = nncf.Dataset([(part.float() / 255).numpy() for part in torch.split(judge.calibration, 1)])
    attention = any(op.get_type_name() in ("Softmax", "ScaledDotProductAttention") for op in model.get_ops())
    how: dict[str, Any] = {
        "preset": nncf.QuantizationPreset.MIXED,
        "subset_size": len(judge.calibration),
        "model_type": nncf.ModelType.TRANSFORMER if attention else None,
    }
    small = nncf.quantize(model, photos, **how)
    if judge.lack(judge.choice.rows(_ask(_compiled(small)))) > 0:
        small = _controlled(model, photos, judge, how)
    kept = _products(small)
    _save(small, path)
    return {"floats": tuple(sorted(kept)), "nodes": len(_products(model))}


def _controlled(model: Any, photos: Any, judge: Judge, how: Mapping[str, Any]) -> Any:
    """nncf's own search for operations to leave float, by what the judge says is missing."""
    import nncf

    def met(network: Any, _: Any) -> tuple[float, None]:
        return 1 - judge.lack(judge.choice.rows(_ask(network))), None

    spare = -judge.lack(judge.choice.student)  # what a perfect copy has to spare: may be used up, no more
    return nncf.quantize_with_accuracy_control(
        model, photos, photos, met, max_drop=spare, drop_type=nncf.DropType.ABSOLUTE, **how
    )


def _products(model: Any) -> set[str]:
    """Names of the convolutions and matrix products whose weights are float."""
    found = set()
    for op in model.get_ops():
        if op.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            source, small = op.input_value(1).get_node(), False
            while source.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape", "Transpose"):
                source = source.input_value(0).get_node()
            small = source.get_type_name() == "Constant" and source.get_element_type().get_type_name() in ("i8", "u8")
            if source.get_type_name() == "Constant" and not small:
                found.add(op.get_friendly_name())
    return found
