import pytest

from gpu_agent.registry.admission import refusal_of, schema_of
from gpu_agent.wire.codes import ErrorCode
from gpu_agent.wire.messages import GpuDeclaration, Hardware, NodeRegister
from tests.registry.fleets import Registry, ack, codes, declaration, hardware


def code_of(message: NodeRegister, *, allow_simulated: bool = False) -> str | None:
    refusal = refusal_of(message, allow_simulated=allow_simulated)
    return None if refusal is None else refusal.code


@pytest.mark.parametrize("found", [hardware(0), hardware(3, memory_gb=0), hardware(1, memory_gb=None)])
def test_r01_without_a_gpu_of_known_memory_nothing_is_registered(found: Hardware) -> None:
    assert code_of(declaration(hardware=found)) == ErrorCode.GPU_REQUIRED


def test_r01_one_gpu_with_memory_among_others_without_is_enough() -> None:
    mixed = (
        GpuDeclaration(name="A"),
        GpuDeclaration(name="B", memory_gb=0),
        GpuDeclaration(name="C", memory_gb=1),
    )
    assert code_of(declaration(hardware=Hardware(cpu_cores=1, memory_gb=1, gpus=mixed))) is None


@pytest.mark.parametrize("version", [None, ""])
def test_r04_a_declaration_without_a_schema_version_follows_1_0(version: str | None) -> None:
    message = declaration(capability_schema_version=version)
    assert schema_of(message) == "1.0"
    assert code_of(message) is None


def test_r05_an_unknown_schema_version_is_refused_with_those_supported() -> None:
    refusal = refusal_of(
        declaration("n", capability_schema_version="9.9", hardware=hardware(0)), allow_simulated=False
    )
    assert refusal is not None
    assert (refusal.code, refusal.node_id) == (ErrorCode.INVALID_CAPABILITY_SCHEMA, "n")
    assert refusal.details == {"supported": ["1.0", "1.1"]}


def test_a_simulated_node_is_taken_only_where_that_is_allowed() -> None:
    message = declaration(simulated=True)
    assert code_of(message) == ErrorCode.SIMULATED_NODE_REFUSED
    assert code_of(message, allow_simulated=True) is None


@pytest.mark.parametrize(
    ("uuids", "second"),
    [
        (("GPU-a", "GPU-b", "GPU-a"), 2),
        (("GPU-a", "GPU-a", "GPU-a"), 1),
        ((None, "#2", None), 2),
        (("#1", None), 1),
    ],
)
def test_two_gpus_under_one_uuid_are_malformed_and_the_refusal_says_which(
    uuids: tuple[str | None, ...], second: int
) -> None:
    twins = tuple(GpuDeclaration(name="A", memory_gb=24, uuid=uuid) for uuid in uuids)
    refusal = refusal_of(
        declaration("n", hardware=Hardware(cpu_cores=1, memory_gb=1, gpus=twins)), allow_simulated=False
    )
    assert refusal is not None
    assert (refusal.code, refusal.node_id) == (ErrorCode.INVALID_MESSAGE, "n")
    [error] = (refusal.details or {})["errors"]
    assert error["path"] == f"$.hardware.gpus[{second}].uuid"
    assert error["path"] in refusal.message


def test_gpus_without_a_uuid_are_told_apart_by_their_place() -> None:
    nameless = tuple(GpuDeclaration(name="A", memory_gb=24) for _ in range(2))
    assert code_of(declaration(hardware=Hardware(cpu_cores=1, memory_gb=1, gpus=nameless))) is None


def test_r05_an_unknown_schema_version_is_refused() -> None:
    registry = Registry()
    assert codes(registry.register(capability_schema_version="9.9")) == ["INVALID_CAPABILITY_SCHEMA"]
    assert registry.fleet.nodes() == []


def test_a_simulated_node_is_refused_unless_allowed() -> None:
    assert codes(Registry().register(simulated=True)) == ["SIMULATED_NODE_REFUSED"]
    registry = Registry(allow_simulated=True)
    registry.register(simulated=True)
    assert registry.node().simulated


def test_r04_a_registration_without_a_schema_version_is_taken_as_1_0() -> None:
    assert ack(Registry().register(capability_schema_version=None)).capability_schema_version == "1.0"
