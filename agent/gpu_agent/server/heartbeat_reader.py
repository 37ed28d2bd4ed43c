"""Reads an ordinary heartbeat many times as fast as the models of `wire.messages` do.

It reads what nodes send over and over: their load, the figures of their GPUs, jobs, models with their states.
Every other frame (another message, another field, whatever breaks a rule) is left to `wire.codec`. So it may
leave out what that accepts, but it accepts nothing that `wire.codec` refuses, and reads the same values:
`tests/server/test_heartbeat_readers.py` compares both. An unknown field is no reason to be lenient: of what
`msgspec` skips it checks too little.

`msgspec` comes with the extra `registry`; a scheduler that embeds the registry does without this module.
"""

import re
from functools import partial
from typing import Annotated, Literal

from msgspec import Meta, MsgspecError, Raw, Struct
from msgspec.json import Decoder
from msgspec.structs import astuple

from gpu_agent.wire.codes import NODE_ID_PATTERN
from gpu_agent.wire.heartbeat import GpuColumns, Heartbeat, Parts, Usage
from gpu_agent.wire.messages import (
    MAX_GPUS,
    MAX_INTEGER,
    MAX_JOBS,
    MAX_MAGNITUDE,
    MAX_MODELS,
    MAX_NAME,
    MAX_REASONS,
)

_SHORT_BYTES = 2048
"""Longer models and states are read each time."""
_MOST_KNOWN = 1024

_BACKSLASH = ord("\\")
"""With it a name can be written in several ways."""

_ABSENT = Raw()
_WireInt = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
_Finite = Annotated[float, Meta(ge=-MAX_MAGNITUDE, le=MAX_MAGNITUDE)]
_Seconds = Annotated[float, Meta(ge=0, le=MAX_MAGNITUDE)]
_Name = Annotated[str, Meta(max_length=MAX_NAME)]


class _Usage(Struct, forbid_unknown_fields=True, gc=False):
    """A `ResourceUsage`."""

    cpu_percent: _Finite
    mem_percent: _Finite
    gpu_percent: _Finite | None = None
    gpu_mem_percent: _Finite | None = None
    running_jobs: _WireInt | None = None


class _Gpu(Struct, forbid_unknown_fields=True, gc=False):
    """A `GpuFigures`."""

    uuid: _Name
    utilization_percent: _Finite | None = None
    memory_used_mb: _WireInt | None = None
    memory_total_mb: _WireInt | None = None
    temperature_c: _Finite | None = None
    power_w: _Finite | None = None
    processes: _WireInt | None = None
    health: _Name = "ok"
    reasons: Annotated[tuple[_Name, ...], Meta(max_length=MAX_REASONS)] = ()


class _Model(Struct, forbid_unknown_fields=True, gc=False):
    """An `InstalledModel`."""

    model_id: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    version: _Name
    kind: _Name | None = None
    src_lang: _Name | None = None
    tgt_lang: _Name | None = None
    dialect: _Name | None = None
    enabled: bool = True
    status: _Name = "ready"
    source: _Name | None = None
    revision: _Name | None = None
    size_bytes: _WireInt | None = None
    format: _Name | None = None


class _Frame(Struct, forbid_unknown_fields=True, gc=False):
    """A `NodeHeartbeat` of ordinary parts."""

    type: Literal["node_heartbeat"]
    node_id: str
    timestamp: _WireInt
    resource_usage: _Usage
    capability_state: Annotated[dict[str, _Name], Meta(max_length=MAX_MODELS)] | None = None
    gpus: Annotated[tuple[_Gpu, ...], Meta(max_length=MAX_GPUS)] | None = None
    probe_age_seconds: _Seconds | None = None
    running_jobs: Annotated[tuple[_Name, ...], Meta(max_length=MAX_JOBS)] | None = None
    sequence: _WireInt | None = None


class _WholeFrame(_Frame, forbid_unknown_fields=True, gc=False):
    installed_models: Annotated[tuple[_Model, ...], Meta(max_length=MAX_MODELS)] | None = None


class _SkimmedFrame(_Frame, forbid_unknown_fields=True, gc=False):
    """One of which the models, which older nodes repeat in each, are left unread."""

    installed_models: Raw = _ABSENT


_decode_whole = Decoder(_WholeFrame).decode
_skim = Decoder(_SkimmedFrame).decode
_is_node_id = re.compile(NODE_ID_PATTERN).fullmatch
# As the classes themselves do, without a call in Python.
_usage = partial(tuple.__new__, Usage)
_columns = partial(tuple.__new__, GpuColumns)
_heartbeat = partial(tuple.__new__, Heartbeat)
_NO_GPUS = GpuColumns()

_read_before: dict[bytes, Parts] = {}
"""Short models with their states by their text: older nodes repeat them, and many have the same."""


def read_heartbeat(frame: bytes, node_id: str | None = None) -> Heartbeat | None:
    """Read an ordinary heartbeat; None for any other frame. It is probably one of this node."""
    try:
        read = _skim(frame)
        models, states = read.installed_models, read.capability_state
        if models is not _ABSENT:
            parts = _parts_in(frame, bytes(models), states)
        else:
            parts = None if states is None else Parts(None, states)
    except MsgspecError:
        return None
    gpus, sender = read.gpus, read.node_id
    if sender != node_id and _is_node_id(sender) is None:
        return None
    columns: GpuColumns | None = None
    if gpus is not None:
        columns = _columns(zip(*map(astuple, gpus), strict=True)) if gpus else _NO_GPUS
    usage = _usage(astuple(read.resource_usage))
    return _heartbeat((sender, usage, columns, read.probe_age_seconds, read.running_jobs, parts))


def _parts_in(frame: bytes, text: bytes, states: dict[str, str] | None) -> Parts | None:
    """Return a frame's models, of which this is the text, and their states; raises `MsgspecError`."""
    known = _read_before.get(text)
    if known is not None and known.capability_state == states and _names_models_once(frame):
        return known
    models = _decode_whole(frame).installed_models
    if models is None:
        return None if states is None else Parts(None, states)
    parts = Parts(tuple(map(astuple, models)), states)
    if len(text) <= _SHORT_BYTES:
        if len(_read_before) >= _MOST_KNOWN:
            _read_before.clear()
        _read_before[text] = parts
    return parts


def _names_models_once(frame: bytes) -> bool:
    """Whether no other models hide before those that are known: of one name the last value counts."""
    return frame.count(b'"installed_models"') == 1 and _BACKSLASH not in frame
