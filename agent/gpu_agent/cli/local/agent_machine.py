"""The machine as an agent's status tells it, read back, so that it is shown as the probe's own page is.

What a newer agent tells besides is left aside. It refuses a document that it cannot read, in a sentence.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gpu_agent.cli.outcome import Failure
from gpu_agent.wire.inventory import Gpu, GpuReport, Host, Inventory, Model, Outcome

_HOST = TypeAdapter(Host)
_OUTCOME = TypeAdapter(Outcome)
_GPUS = TypeAdapter(tuple[Gpu, ...])
_MODELS = TypeAdapter(tuple[Model, ...])


def inventory_of(machine: Mapping[str, Any]) -> Inventory:
    """Read it; raises `Failure`."""
    try:
        return Inventory(
            host=_HOST.validate_python(machine["host"]),
            gpu=GpuReport(
                outcome=_OUTCOME.validate_python(machine["outcome"]),
                detail=machine["detail"],
                gpus=_GPUS.validate_python(machine["gpus"]),
                driver_version=machine["driver_version"],
                cuda_version=machine["cuda_version"],
            ),
            models=_MODELS.validate_python(machine["models"]),
            models_complete=machine["models_complete"],
            models_unsearched=machine["models_unsearched"],
            features_supported=machine["features_supported"],
            advanced_features=tuple(machine["advanced_features"]),
            simulated=machine["simulated"],
            took_ms=machine["took_ms"],
        )
    except (ValidationError, KeyError, TypeError) as error:
        raise Failure(
            f"what the agent says of its machine cannot be read ({_first(error)}): it is of another version; "
            "restart it after an upgrade, or read what it says with --json"
        ) from None


def _first(error: ValidationError | KeyError | TypeError) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False)[0]
        return ": ".join([*([".".join(map(str, fault["loc"]))] if fault["loc"] else []), fault["msg"]])
    return f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
