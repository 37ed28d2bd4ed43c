"""Options of `run`, `registry serve` and `doctor`, made from the settings' fields.

A module of its own, since it loads pydantic: other commands start without.
"""

import argparse
from collections.abc import Container
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gpu_agent.runtime.config.fields import options_of


def add_setting_options(
    parser: argparse.ArgumentParser, settings: type[BaseModel], *, only: Container[str] | None = None
) -> None:
    """Add the options of a component's settings; one that is not given is left to the other layers."""
    for name, field, setting in options_of(settings):
        if only is not None and name not in only:
            continue
        option, default = str(setting.option), _default_words(field)
        if field.annotation is bool:
            parser.add_argument(
                option, dest=name, action="store_true", default=None, help=setting.meaning.replace("`", "")
            )
        else:
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
            parser.add_argument(
                option,
                dest=name,
                choices=choices,
                metavar=setting.metavar or (None if choices else "N"),
                help=setting.meaning.replace("`", "") + (f" (default {default})" if default else ""),
            )


def _default_words(field: FieldInfo) -> str:
    """A default as one types it; empty where the meaning says what holds without the setting."""
    value = field.get_default()
    if field.is_required() or value in (None, ()):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
