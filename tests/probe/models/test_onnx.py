"""ONNX files made with the `onnx` package, and what is wrong with them."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gpu_agent.probe.models.file_cursor import FileCursor
from gpu_agent.probe.models.onnx import onnx_external_data
from tests.probe.models.caches import ONNX
from tests.waiting import patience


def needed(folder: Path, content: bytes, *, longer_by: int = 0) -> Mapping[str, int] | str:
    """What a file of that content needs of others, or what is wrong with it."""
    path = folder / "m.onnx"
    path.write_bytes(content)
    os.truncate(path, len(content) + longer_by)
    with path.open("rb") as file:
        try:
            return onnx_external_data(FileCursor(file.fileno(), len(content) + longer_by))
        except OSError as error:
            return str(error)


def model(*tensors: TensorProto, **operators: int) -> onnx.ModelProto:
    graph = helper.make_graph([], "graph", [], [], initializer=tensors)
    stated = [helper.make_opsetid(domain, version) for domain, version in (operators or {"": 17}).items()]
    return helper.make_model(graph, opset_imports=stated)


def external(shape: tuple[int, ...] = (4, 5), kind: int = TensorProto.FLOAT, **stated: str) -> TensorProto:
    tensor = TensorProto(name="w", dims=shape, data_type=kind, data_location=TensorProto.EXTERNAL)
    for key, value in stated.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_what_is_needed_of_another_file_reaches_to_the_last_tensor_in_it(tmp_path: Path) -> None:
    first = external(location="a.data", offset="0", length="80")
    second = external(location="./a.data", offset="4096", length="80")
    third = external(location="sub/b.data", offset="8", length="1")
    within = numpy_helper.from_array(np.zeros(3), "within")
    content = model(first, second, within, third).SerializeToString()
    assert needed(tmp_path, content) == {"a.data": 4176, "sub/b.data": 9}


NARROW = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
NOT_MEASURED = {"UNDEFINED", "STRING", "FLOAT6E2M3", "FLOAT6E3M2"}


@pytest.mark.parametrize("name", sorted(set(TensorProto.DataType.keys()) - NOT_MEASURED))
def test_a_length_that_is_not_stated_follows_from_shape_and_type(tmp_path: Path, name: str) -> None:
    kind = TensorProto.DataType.Value(name)
    item_bits = NARROW.get(name) or helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
    content = model(external((6, 10), kind, location="w", offset="16")).SerializeToString()
    assert needed(tmp_path, content) == {"w": 16 + 60 * item_bits // 8}


@pytest.mark.parametrize("location", ["../w", "/etc/passwd", "a/../../w", "..", ".", "a\\..\\w"])
def test_weights_outside_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    content = model(external(location=location, length="1")).SerializeToString()
    assert needed(tmp_path, content) == "its weights are outside of its folder"


def test_weights_that_name_no_file_or_no_number_are_refused(tmp_path: Path) -> None:
    unnamed = model(external(length="1")).SerializeToString()
    assert needed(tmp_path, unnamed) == "it names no file for its weights"
    for length, offset in (("many", "0"), ("1", "-"), ("-1", "8"), ("1", "-8")):
        content = model(external(location="w", length=length, offset=offset)).SerializeToString()
        assert "does not say how many bytes" in str(needed(tmp_path, content))


def test_a_graph_without_the_version_of_its_operators_was_cut(tmp_path: Path) -> None:
    whole = model()
    content = whole.SerializeToString()
    assert needed(tmp_path, content) == {}
    whole.ClearField("opset_import")
    shorter = whole.SerializeToString()
    assert content.startswith(shorter)
    assert needed(tmp_path, shorter) == "it ends within its header"
    whole.ir_version = 2
    assert needed(tmp_path, whole.SerializeToString()) == {}


def test_weights_of_gigabytes_within_the_file_are_not_read(tmp_path: Path) -> None:
    weights = 40 << 30
    tensor = TensorProto(name="w", dims=[weights // 4], data_type=TensorProto.FLOAT).SerializeToString()
    raw = b"\x4a" + varint(weights)
    initializer = b"\x2a" + varint(len(tensor) + len(raw) + weights) + tensor + raw
    content = b"\x08\x08\x42\x02\x10\x11\x3a" + varint(len(initializer) + weights) + initializer
    assert needed(tmp_path, content, longer_by=weights) == {}
    assert needed(tmp_path, content, longer_by=weights - 1) == "it ends within its header"


def varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*parts, value))


def nodes(count: int) -> bytes:
    """So many nodes without content, in a graph."""
    return ONNX[:2] + b"\x3a" + varint(2 * count) + b"\x0a\x00" * count + b"\x42\x02\x10\x11"


def test_a_graph_beyond_the_bound_is_whole_and_not_looked_at_to_the_end(tmp_path: Path) -> None:
    assert needed(tmp_path, nodes(300_000)) == {}


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"<!DOCTYPE html>\n<html>", "it is a web page, saved in place of the file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "it is a pointer of Git LFS"),
        (b"PK\x03\x04" + bytes(400), "it is no ONNX file"),
        (b"\x7fELF" + bytes(400), "it is no ONNX file"),
        (bytes(400), "it is no ONNX file"),
        (b"\xff" * 400, "it is no ONNX file"),
    ],
)
def test_another_file_is_recognized_before_more_of_it_is_read(
    tmp_path: Path, content: bytes, wrong: str
) -> None:
    assert str(needed(tmp_path, content, longer_by=1 << 40)).startswith(wrong)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    for content in (tail, ONNX[:2] + tail, ONNX[:2] + b"\x3a" + varint(len(tail)) + tail + b"\x42\x00"):
        needed(tmp_path_factory.getbasetemp(), content)


def test_a_shape_that_no_tensor_has_costs_no_time_and_makes_a_number_that_can_be_written(
    tmp_path: Path,
) -> None:
    shape = (2**63 - 1,) * 20_000
    began = time.monotonic()
    (whole,) = cast(
        "Mapping[str, int]", needed(tmp_path, model(external(shape, location="w")).SerializeToString())
    ).values()
    assert len(str(whole)) < 30
    assert time.monotonic() - began < patience(1)


def test_a_length_of_thousands_of_digits_is_too_much_and_stays_short(tmp_path: Path) -> None:
    content = model(external(location="w", length="9" * 4_000, offset="9" * 4_000)).SerializeToString()
    (whole,) = cast("Mapping[str, int]", needed(tmp_path, content)).values()
    assert 2**63 < whole < 10**25
