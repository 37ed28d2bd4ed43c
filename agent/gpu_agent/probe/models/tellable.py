"""Which of the models found may be told to a registry: those with a name, in fields of a sane length.

A cache holds whatever names people give to folders and write into files. A model that no message
could carry is a problem of the place where it lies, with a reason; a mere remark that is too long
is left out. It refuses to shorten an id or a version: a cut name would be another model's.
"""

from collections.abc import Iterable
from dataclasses import replace

from gpu_agent.wire.inventory import Model

LONGEST = 1024
"""Characters in one field of a message; the protocol's own bound."""
LARGEST_BYTES = 2**53
"""The largest size that every JSON reader keeps exact; a sparse file can claim more."""


def tellable(models: Iterable[Model], place: str) -> tuple[tuple[Model, ...], dict[str, str]]:
    """The models that can be told, and why the others of this place cannot."""
    told: list[Model] = []
    problems: dict[str, str] = {}
    for model in models:
        fault = _fault(model)
        if fault:
            problems[place] = fault
        else:
            told.append(_without_long_remarks(model))
    return tuple(told), problems


def _fault(model: Model) -> str | None:
    if not model.model_id.strip(" /"):
        return "it holds a model without a name; rename it, or state a model_id"
    for what, text in (("id", model.model_id), ("version", model.version)):
        if len(text) > LONGEST:
            return f"the {what} of a model in it is longer than {LONGEST} characters; shorten it"
    return None


def _without_long_remarks(model: Model) -> Model:
    size = model.size_bytes
    remarks = model.src_lang, model.tgt_lang, model.dialect, model.revision
    if all(map(_fits, remarks)) and (size is None or size <= LARGEST_BYTES):
        return model
    return replace(
        model,
        src_lang=_fitting(model.src_lang),
        tgt_lang=_fitting(model.tgt_lang),
        dialect=_fitting(model.dialect),
        revision=_fitting(model.revision),
        size_bytes=None if size is None or size > LARGEST_BYTES else size,
    )


def _fits(text: str | None) -> bool:
    return text is None or len(text) <= LONGEST


def _fitting(text: str | None) -> str | None:
    return text if _fits(text) else None
