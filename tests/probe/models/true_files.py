"""Weights as the true libraries write them, and how many bytes of each are claimed by its header.

`gguf`, `safetensors` and `onnx` are the packages that the formats' own makers publish.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

QUANTIZED = tuple(kind for kind in gguf.GGMLQuantizationType if kind is not gguf.GGMLQuantizationType.Q8_1)
"""Every type that is stored in files."""


@dataclass(frozen=True)
class TrueFile:
    """What a library wrote."""

    name: str
    content: bytes
    claimed: int
    """Bytes up to the last that its header claims; what follows is padding."""
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Files that hold its weights, each claimed to the last byte."""


def write_gguf(folder: Path, dice: random.Random) -> TrueFile:
    """A GGUF file with a vocabulary, and tensors of types that the dice choose."""
    path = folder / "true.gguf"
    writer = gguf.GGUFWriter(path, dice.choice(("llama", "bert", "qwen3")))
    if dice.random() < 0.5:
        writer.add_custom_alignment(dice.choice((8, 64, 256)))
    writer.add_context_length(4096)
    writer.add_token_list([f"word{number}" for number in range(dice.randint(1, 3000))])
    writer.add_token_scores([0.5] * dice.randint(1, 100))
    writer.add_array("nested.numbers", [[1, 2], [3, 4]])
    last = 0
    for number in range(dice.randint(1, 5)):
        kind = dice.choice(QUANTIZED)
        _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        rows, blocks = dice.randint(1, 5), dice.randint(1, 4)
        data = np.frombuffer(dice.randbytes(rows * blocks * block_bytes), dtype=np.uint8)
        shape = (rows, blocks * block_bytes)
        writer.add_tensor(f"blk.{number}.weight", data.reshape(shape), raw_dtype=kind)
        last = data.nbytes
    alignment = writer.data_alignment
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = path.read_bytes()
    padding = -last % alignment
    return TrueFile(path.name, content, len(content) - padding)


def write_safetensors(folder: Path, dice: random.Random) -> TrueFile:
    """A safetensors file."""
    path = folder / "true.safetensors"
    tensors = {
        f"layer.{number}": np.zeros(
            (dice.randint(1, 40), dice.randint(1, 40)), dtype=dice.choice(("float32", "float16", "int8"))
        )
        for number in range(dice.randint(1, 30))
    }
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt", "note": '"data_offsets": [0, 9]'})
    content = path.read_bytes()
    return TrueFile(path.name, content, len(content))


def write_onnx(folder: Path, dice: random.Random) -> TrueFile:
    """An ONNX file with its weights within."""
    content = _model(dice).SerializeToString()
    (folder / "true.onnx").write_bytes(content)
    return TrueFile("true.onnx", content, len(content))


def write_onnx_in_parts(folder: Path, dice: random.Random) -> TrueFile:
    """An ONNX file with its weights in other files: all in one, or each in its own."""
    model = _model(dice)
    together = dice.random() < 0.5
    convert_model_to_external_data(
        model,
        all_tensors_to_one_file=together,
        location="true.onnx_data" if together else None,
        size_threshold=0,
        convert_attribute=True,
    )
    before = {path.name for path in folder.iterdir()}
    onnx.save_model(model, folder / "true.onnx")
    content = (folder / "true.onnx").read_bytes()
    beside = {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in before and path.name != "true.onnx"
    }
    return TrueFile("true.onnx", content, len(content), beside)


WRITERS: Mapping[str, Callable[[Path, random.Random], TrueFile]] = {
    "gguf": write_gguf,
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "onnx in parts": write_onnx_in_parts,
}


def _model(dice: random.Random) -> onnx.ModelProto:
    """A chain of additions, each of a tensor, one of them in a branch of its own, and one in a node."""
    width = dice.randint(4, 60)
    tensors = [
        numpy_helper.from_array(np.ones((dice.randint(1, 20), width), dtype=np.float32), f"w{number}")
        for number in range(dice.randint(1, 8))
    ]
    inner = numpy_helper.from_array(np.ones((3, width), dtype=np.float32), "inner")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["chosen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)],
        initializer=[inner],
    )
    constant = numpy_helper.from_array(np.ones((5, width), dtype=np.float32), "held")
    nodes = [
        helper.make_node("Constant", [], ["constant"], value=constant),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch),
        *(helper.make_node("Add", ["y", tensor.name], [f"sum of {tensor.name}"]) for tensor in tensors),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("flag", TensorProto.BOOL, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=tensors,
    )
    return helper.make_model(graph, producer_name="tests", opset_imports=[helper.make_opsetid("", 17)])
