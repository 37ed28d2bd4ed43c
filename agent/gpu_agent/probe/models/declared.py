"""Models that the operator declares, and how a declaration changes what was found.

A declaration is about its `model_id`. With a version it is the only model of that id: found ones are hidden,
and fill the fields that it leaves open. Without a version it overrides, field by field, each version that was
found. `hidden` removes the id altogether. A declared model that was found nowhere is reported as declared.
"""

from collections.abc import Iterable, Sequence

from gpu_agent.probe.models.kinds import languages_of
from gpu_agent.probe.models.source import UNVERSIONED
from gpu_agent.records import dataclass, replace
from gpu_agent.wire.inventory import Model, ModelStatus

SOURCE = "declared"

_PREFERENCE = (ModelStatus.READY, ModelStatus.DOWNLOADING, ModelStatus.ERROR, ModelStatus.NOT_INSTALLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDeclaration:
    """What the configuration states of one model; `None` takes what was found."""

    model_id: str
    version: str | None = None
    kind: str | None = None
    src_lang: str | None = None
    tgt_lang: str | None = None
    dialect: str | None = None
    enabled: bool = True
    status: ModelStatus | None = None
    hidden: bool = False


def apply_declarations(declarations: Sequence[ModelDeclaration], found: Iterable[Model]) -> tuple[Model, ...]:
    """The models after all declarations; declared ones first, in their order."""
    by_id: dict[str, list[Model]] = {}
    for model in found:
        by_id.setdefault(model.model_id, []).append(model)
    declared = [
        model
        for declaration in declarations
        for model in _apply(declaration, by_id.get(declaration.model_id, []))
    ]
    declared_ids = {declaration.model_id for declaration in declarations}
    others = [model for model_id, models in by_id.items() if model_id not in declared_ids for model in models]
    return (*declared, *others)


def more_usable(one: Model, other: Model) -> Model:
    """Of two findings of the same model, the one that can serve; the first where both are alike."""
    return min(one, other, key=lambda model: _PREFERENCE.index(model.status))


def _apply(declaration: ModelDeclaration, found: Sequence[Model]) -> list[Model]:
    if declaration.hidden:
        return []
    if declaration.version is None and found:
        return [_override(model, declaration) for model in found]
    return [_override(_base_model(declaration, found), declaration)]


def _base_model(declaration: ModelDeclaration, found: Sequence[Model]) -> Model:
    """The found model that a declaration with a version is about; a blank one when none was found."""
    version = declaration.version or UNVERSIONED
    same = [model for model in found if version in (model.version, model.revision)]
    candidates = same or list(found)
    if candidates:
        return replace(min(candidates, key=lambda model: _PREFERENCE.index(model.status)), version=version)
    source_language, target_language = languages_of(declaration.model_id)
    return Model(
        model_id=declaration.model_id, version=version, src_lang=source_language, tgt_lang=target_language
    )


def _override(model: Model, declaration: ModelDeclaration) -> Model:
    status = declaration.status or model.status
    return replace(
        model,
        kind=declaration.kind or model.kind,
        src_lang=declaration.src_lang or model.src_lang,
        tgt_lang=declaration.tgt_lang or model.tgt_lang,
        dialect=declaration.dialect or model.dialect,
        enabled=declaration.enabled,
        status=status,
        source=SOURCE,
        detail=model.detail if status == model.status else None,
    )
