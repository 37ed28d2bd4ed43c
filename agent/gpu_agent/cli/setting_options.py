"""Options of `run`, `registry serve` and `doctor`, made from the settings' fields.

A module of its own, since it loads pydantic: other commands start without.
"""

from collections.abc import Container
from typing import Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gpu_agent.cli.declaration import option
from gpu_agent.runtime.config.fields import options_of
from gpu_agent.wire.settings import Setting


def setting_options(
    settings: type[BaseModel], *, only: Container[str] | None = None
) -> list[click.Parameter]:
    """Return the options of a component's settings; one that is not given is left to the other layers."""
    return [
        _option(name, field, setting)
        for name, field, setting in options_of(settings)
        if only is None or name in only
    ]


def _option(name: str, field: FieldInfo, setting: Setting) -> click.Option:
    default, meaning = _default_words(field), setting.meaning.replace("`", "")
    typed = str(setting.option)
    if field.annotation is bool:
        made = option(typed, dest=name, flag=True, help=meaning)
        made.callback = _none_unless_given
        return made
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
    return option(
        typed,
        dest=name,
        choices=choices,
        metavar=setting.metavar or (None if choices else "N"),
        help=meaning + (f" (default {default})" if default else ""),
    )


def _none_unless_given(ctx: click.Context, param: click.Parameter, value: bool) -> bool | None:  # noqa: FBT001 - click hands it over so
    del ctx, param
    return value or None


def _default_words(field: FieldInfo) -> str:
    """A default as one types it; empty where the meaning says what holds without the setting."""
    value = field.get_default()
    if field.is_required() or value in (None, ()):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
