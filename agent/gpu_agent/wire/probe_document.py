"""The document of `gpu-agent probe --json`, and the part of `status` that says what the machine has.

The probe writes it without pydantic (`probe.snapshot.to_document`), because importing pydantic takes as long
as a probe. Readers and the JSON Schemas use these models. Unknown is null, with its reason in `unknowns`.
Sizes are MiB (`_mb`) or bytes, temperatures °C, power W, times Unix seconds.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core.core_schema import ComputedField, DataclassField, ModelField, TypedDictField

from gpu_agent.wire.inventory import Gpu, Host, Model, Outcome

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Document(BaseModel):
    """Base of the documents that programs on the agent's machine read; a newer writer may add fields."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=(), defer_build=True
    )


class ProbeDocument(Document):
    """What one probe found on this machine."""

    schema_id: Literal["gpu-agent.probe/1"] = Field(alias="schema")
    outcome: Outcome
    detail: str | None = Field(description="the next step where the outcome is not `ok`")
    could_register: bool = Field(description="whether the exit code is 0")
    simulated: bool = Field(description="true for a machine that does not exist")
    host: Host
    gpus: tuple[Gpu, ...]
    models: tuple[Model, ...]
    models_complete: bool = Field(description="false: the scan ran out of its time")
    models_unsearched: Mapping[str, str] = Field(description="folder: why no scan for models reached it")
    features_supported: Mapping[str, bool]
    advanced_features: tuple[str, ...]
    driver_version: str | None = Field(description="of the NVIDIA driver")
    cuda_version: str | None = Field(description="the newest that the driver supports")
    took_ms: float


class WatchedProbeDocument(ProbeDocument):
    """One document of `gpu-agent probe --watch --json`."""

    at: float | None = Field(None, description="Unix time; with --watch only")
    probe_age_seconds: float | None = Field(
        None, description="age of the last good reading of the GPUs; with --watch only"
    )


class MachineDocument(ProbeDocument):
    """What the agent's last probe found, and how old it is."""

    probe_age_seconds: float | None = Field(description="age of the last good reading of the GPUs")
    models_found: int = Field(description="of very many, `models` lists a part")
    models_not_declared: tuple[str, ...] = Field(description="left out of the declaration: no room in it")


class _WrittenInFull(GenerateJsonSchema):
    """A dataclass field with a default is always written: its default is a value, not a reason to omit it."""

    def field_is_required(
        self,
        field: ModelField | DataclassField | TypedDictField | ComputedField,
        total: bool,  # noqa: FBT001 - pydantic's signature
    ) -> bool:
        if field["type"] == "computed-field":
            return True
        return field["type"] == "dataclass-field" or super().field_is_required(field, total)

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - pydantic's signature
        return False


def json_schema(name: str, description: str, document: type[Document]) -> dict[str, Any]:
    """Return the JSON Schema of a document, as its writer writes it; `description` is for its readers."""
    made = document.model_json_schema(mode="serialization", schema_generator=_WrittenInFull)
    return {"$schema": DIALECT, **made, "title": name, "description": description}


def probe_schema() -> dict[str, Any]:
    """Return the JSON Schema of `gpu-agent probe --json`, with `--watch` or without."""
    description = (
        "What `gpu-agent probe --json` prints (gpu-agent.probe/1). Sizes are MiB (`_mb`) or bytes, "
        "temperatures °C, power W, times Unix seconds. Unknown is null, with its reason in `unknowns`."
    )
    return json_schema("probe", description, WatchedProbeDocument)
