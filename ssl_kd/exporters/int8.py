"""int8 that is proven: onnxruntime's static quantisation (QDQ, a scale per channel), with the nodes that suffer left float.

    ssl-kd export student.safetensors --to onnx-int8 --images photos/ --teacher teacher.pth --out student.int8.onnx

Ranges come from the photos of `Judge.calibration` (least and greatest value). Every group of nodes (a convolution or matrix
product with what follows it) is made int8 alone and measured against the float student's embeddings; where the whole does
not keep what was asked for, groups are left float in the order of the damage that they do, as few as suffice.

What was tried on trained networks (docs/int8.md): cutting ranges at 99.99 and 99.9 percent ruins a ViT, whose outliers carry
the answer; so does int8 for its additions, softmax and norms, which is why of a transformer only matrix products are made int8.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssl_kd.errors import UserError, one_line
from ssl_kd.exporters.judge import BATCH, Ask, Judge

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("Conv", "MatMul", "Gemm")
# Between products of a convolutional network: left float, each would turn integers into floats and back.
FLOW = (*PRODUCTS, "Add", "Mul", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool")
TRANSFORMER = ("LayerNormalization", "Softmax", "Attention", "SimplifiedLayerNormalization")
GROUPS = 64  # at most: neighbours are joined beyond that
RANKED = 64  # photos by which groups are ranked


@dataclass(frozen=True)
class Chosen:
    """An int8 model and how it came about. `floats`: products left float, of `nodes`; `lack`: what is missing still."""

    model: bytes
    floats: tuple[str, ...]
    nodes: int
    lack: float


def shrink(path: Path, judge: Judge) -> Chosen:
    """The int8 form of a float ONNX file, with as few float groups as keep what the judge asks. The file stays as it is."""
    with _quiet(), tempfile.TemporaryDirectory(prefix="ssl_kd.int8.") as folder:
        maker = Maker(path, judge.calibration, Path(folder))
        return choose(maker, judge)


def choose(maker: Maker, judge: Judge) -> Chosen:
    """The smallest set of groups, most harmful first, whose floats suffice: by doubling it, then by halving the gap."""
    groups = maker.groups
    whole = maker.model(())
    if (lack := judge.lack(judge.choice.rows(program(whole)))) <= 0:
        return Chosen(whole, (), maker.nodes, lack)
    ranked = sorted(groups, key=lambda group: -_harm(maker, judge, group))
    tried: dict[int, tuple[bytes, float]] = {}

    def short(count: int) -> bool:
        model = maker.model([name for group in ranked[:count] for name in group])
        tried[count] = (model, judge.lack(judge.choice.rows(program(model))))
        return tried[count][1] > 0

    low, high = 0, 1
    while high < len(groups) and short(high):
        low, high = high, min(2 * high, len(groups))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if short(middle) else (low, middle)
    if high not in tried:
        short(high)
    model, lack = tried[high]
    floats = [name for group in ranked[:high] for name in group if name in maker.products]
    return Chosen(model, tuple(floats), maker.nodes, lack)


def _harm(maker: Maker, judge: Judge, group: Sequence[str]) -> float:
    """How far the embeddings move when this group alone is int8."""
    ask, photos = program(maker.model((), only=group)), judge.choice.photos[:RANKED]
    return judge.apart(torch.cat([ask(part.float() / 255) for part in torch.split(photos, BATCH)]))


class Maker:
    """Int8 models of one float model, by the ranges that its values have on some photos."""

    def __init__(self, path: Path, photos: Tensor, folder: Path):
        import onnx

        self.folder, self.plain = folder, folder / "float.onnx"
        _prepare(path, self.plain)
        self.float_model: onnx.ModelProto = onnx.load(self.plain)
        for i, node in enumerate(self.float_model.graph.node):
            node.name = node.name or f"{node.op_type}_{i}"  # fused ones come without; nodes are chosen by name
        onnx.save(self.float_model, self.plain)
        kinds = {node.op_type for node in self.float_model.graph.node}
        self.kinds = [kind for kind in (PRODUCTS if kinds & set(TRANSFORMER) else FLOW) if kind in kinds]
        held = {tensor.name for tensor in self.float_model.graph.initializer}
        able = [node for node in self.float_model.graph.node if node.op_type in self.kinds]
        self.products = {node.name for node in able if node.op_type in PRODUCTS and held & set(node.input)}
        if not self.products:
            raise UserError("onnx-int8: the network has no convolution and no matrix product to make int8")
        names = [node.name for node in able]
        last = max(i for i, name in enumerate(names) if name in self.products)
        # What follows the last product makes the embedding: eight bits for all its numbers would cost much and save nothing.
        self.tail = names[last + 1 :]
        self.groups = _groups(names[: last + 1], self.products)
        self.ranges = self._ranges(photos)

    @property
    def nodes(self) -> int:
        """How many products could become integers."""
        return len(self.products)

    def _ranges(self, photos: Tensor) -> Any:
        from onnxruntime.quantization import CalibrationMethod, create_calibrator

        calibrator = create_calibrator(
            self.plain, self.kinds, str(self.folder / "observed.onnx"), CalibrationMethod.MinMax
        )
        calibrator.collect_data(_reader(photos))
        return calibrator.compute_data()

    def model(self, floats: Collection[str], only: Sequence[str] = ()) -> bytes:
        """The model with every node int8 but those named `floats`; with `only`, none but these."""
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        model = onnx.ModelProto()
        model.CopyFrom(self.float_model)
        maker = QDQQuantizer(
            model,
            True,  # a scale per channel
            False,  # whole range
            QuantType.QInt8,
            QuantType.QUInt8,  # the pair that processors multiply fastest
            self.ranges,
            list(only),
            [*floats, *self.tail],
            self.kinds,
            {"MatMulConstBOnly": True},  # products of two activations have no weights to save
        )
        maker.quantize_model()
        made: bytes = maker.model.model.SerializeToString()
        return made


def _prepare(path: Path, to: Path) -> None:
    """Fold batch norms and constants, infer shapes: what onnxruntime asks for before it quantises."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(str(path), str(to), skip_symbolic_shape=True)
    except Exception as error:  # onnxruntime raises whatever its passes raise
        raise UserError(f"onnx-int8: onnxruntime cannot prepare this network: {one_line(error, 160)}") from error


def _groups(names: Sequence[str], products: Collection[str]) -> list[tuple[str, ...]]:
    """Nodes in the order of the graph, cut before each product; neighbours joined until there are at most GROUPS."""
    groups: list[list[str]] = []
    for name in names:
        if name in products or not groups:
            groups.append([])
        groups[-1].append(name)
    size = -(-len(groups) // GROUPS)
    return [tuple(n for group in groups[i : i + size] for n in group) for i in range(0, len(groups), max(size, 1))]


def _reader(photos: Tensor) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(torch.split(photos, BATCH))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": (batch.float() / 255).numpy()}

    return Reader()


def program(model: bytes) -> Ask:
    """An ONNX model as a function of images, by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantiser warns through the root logger about what is known here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
