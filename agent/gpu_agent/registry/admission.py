"""Whether a declaration may be registered at all, whoever sends it (R-01, R-04, R-05).

Judges the message alone: who may carry which id is decided where sessions are known.
"""

from gpu_agent.registry.declared import uuid_of
from gpu_agent.wire.codes import SUPPORTED_SCHEMA_VERSIONS, ErrorCode
from gpu_agent.wire.messages import Hardware, NodeError, NodeRegister

OLDEST_SCHEMA = "1.0"
"""What a declaration is read as when it names no schema (R-04)."""


def schema_of(message: NodeRegister) -> str:
    """Return the schema version that a declaration claims to follow."""
    return message.capability_schema_version or OLDEST_SCHEMA


def refusal_of(message: NodeRegister, *, allow_simulated: bool) -> NodeError | None:
    """Return why a declaration is refused; None when nothing in it stands against it."""
    if schema_of(message) not in SUPPORTED_SCHEMA_VERSIONS:
        return schema_not_supported(schema_of(message), node_id=message.node_id)
    ambiguous = ambiguity_of(message.hardware, node_id=message.node_id)
    if ambiguous is not None:
        return ambiguous
    if message.simulated and not allow_simulated:
        return NodeError(
            node_id=message.node_id,
            code=ErrorCode.SIMULATED_NODE_REFUSED,
            message="this registry takes no simulated nodes: run the agent without --simulate, "
            "or start the registry with --allow-simulated",
        )
    if not any(gpu.memory_gb for gpu in message.hardware.gpus):
        return _gpu_required(message)
    return None


def ambiguity_of(hardware: Hardware, *, node_id: str | None) -> NodeError | None:
    """Refuse hardware of which two GPUs go by one UUID: no figure could be told to be of one of them."""
    places: dict[str, int] = {}
    for place, gpu in enumerate(hardware.gpus):
        first = places.setdefault(uuid_of(gpu, place), place)
        if first != place:
            return _same_uuid(first, place, node_id=node_id)
    return None


def schema_not_supported(version: str, *, node_id: str | None) -> NodeError:
    """Refuse a schema version, and say which to take instead (R-05)."""
    supported = ", ".join(SUPPORTED_SCHEMA_VERSIONS)
    return NodeError(
        node_id=node_id,
        code=ErrorCode.INVALID_CAPABILITY_SCHEMA,
        message=f"capability schema {version[:40]!r} is not supported: "
        f"register again with one of {supported}",
        details={"supported": list(SUPPORTED_SCHEMA_VERSIONS)},
    )


def _same_uuid(first: int, second: int, *, node_id: str | None) -> NodeError:
    path, problem = f"$.hardware.gpus[{second}].uuid", f"the same as that of gpus[{first}]"
    return NodeError(
        node_id=node_id,
        code=ErrorCode.INVALID_MESSAGE,
        message=f"{path}: {problem}; declare each GPU once, under a uuid of its own",
        details={"errors": [{"path": path, "problem": problem}]},
    )


def _gpu_required(message: NodeRegister) -> NodeError:
    declared = len(message.hardware.gpus)
    found = f"{declared} declared, none with memory_gb above 0" if declared else "none declared"
    return NodeError(
        node_id=message.node_id,
        code=ErrorCode.GPU_REQUIRED,
        message=f"a node needs at least one GPU with memory above zero ({found}): "
        "register again when `gpu-agent probe` shows one",
    )
