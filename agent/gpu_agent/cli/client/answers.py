"""Answers of a registry or an agent: as a model to read, and as the document that `--json` prints."""

from dataclasses import dataclass
from typing import Generic, TypeVar

Document = dict[str, object]
Model = TypeVar("Model")
"""A pydantic model; pydantic is loaded with the first answer, since help needs none."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[Model]):
    """One answer. The document also holds what a newer registry or agent adds."""

    model: Model
    document: Document


def parse_answer(document: Document, model: type[Model]) -> Answer[Model]:
    """Read a document; raises `ValueError` with the first field that is wrong."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return Answer(TypeAdapter(model).validate_python(document), document)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, fault['loc'])) or 'all of it'}: {fault['msg']}") from None
