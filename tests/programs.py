"""Small ONNX files for tests: made in a moment, without torch's exporter."""

import json

import numpy as np

CARD = {
    "preprocessing": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "size": 8,
        "resize": 9,
        "crop": 8,
        "interpolation": "bicubic",
    },
    "pixels": "normalised",
}


def small_model(batch="batch", size=8, width=6, seed=0, extra=(), outputs=("embedding",), opset=17, depth=1):
    """An ONNX model: `depth` 3 x 3 convolutions with ReLU, an average, and a linear layer without bias."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    nodes, weights, last, channels = [], [], "images", 3
    for i in range(depth):
        kernel = rng.normal(0, 0.4, (4, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"kernel{i}"))
        nodes += [
            helper.make_node("Conv", [last, f"kernel{i}"], [f"map{i}"], name=f"conv{i}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"map{i}"], [f"relu{i}"], name=f"relu{i}"),
        ]
        last, channels = f"relu{i}", 4
    weights.append(numpy_helper.from_array(rng.normal(0, 1, (4, width)).astype(np.float32), "linear"))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "linear"], ["embedding"], name="linear"),
        *extra,
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def write(folder, model, card=CARD, name="theirs.onnx"):
    """The file, with a card beside it unless that is None."""
    path = folder / name
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    if card is not None:
        (folder / f"{name}.json").write_text(json.dumps(card))
    return path
