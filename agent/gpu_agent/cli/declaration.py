"""How commands are declared to click: options and arguments, their help, and mistakes as sentences.

Help says what a command does, what it takes by subject, an example that can be typed, and its exit codes.
A mistake is a sentence with the next step; an option's value, which may be a secret, is not repeated where
the option is unknown. click takes no option by the half of its name: `--join-token X` must not pass for
`--join-token-file X`, since other users could read the token.
"""

import gc
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from click.shell_completion import CompletionItem

from gpu_agent.cli.command import (
    AGENT_MEANINGS,
    EXITS_OF_REQUESTS,
    MEANINGS,
    REGISTRY_MEANINGS,
    Arguments,
    ExitCode,
    Failure,
)

OWN = "options"
"""The subject of options that name none."""
_STDOUT, _USUAL_COLUMNS, _FULL_COLUMNS = 1, 80, 79
_INDENT, _MOST_INDENT = 2, 24
_LIKE = 0.75
"""The least similarity of a mistyped option: all begin alike."""
_COMPLETED = {"FILE": "file", "DIR": "dir"}
"""The kind of completion of a shell, by metavar."""

Run = Callable[[Arguments], int]
"""Does the work; returns the exit code or raises `Failure`."""


class Option(click.Option):
    """An option with the subject that help lists it under."""

    subject: str = OWN

    def process_value(self, ctx: click.Context, value: Any) -> Any:  # noqa: ANN401 - click's own type
        """Refuse an option where a value is missing."""
        known = {name for param in ctx.command.params for name in param.opts}
        if isinstance(value, str) and value.partition("=")[0] in known:
            raise click.BadOptionUsage(self.opts[-1], f"{self.opts[-1]} needs a value", ctx=ctx)
        return super().process_value(ctx, value)


class Argument(click.Argument):
    """An argument with words about it, which click's own has not."""

    def __init__(self, name: str, *, about: str, **given: Any) -> None:  # noqa: ANN401 - click's own type
        super().__init__([name], **given)
        self.about = about


class _Parsed(click.ParamType[object]):
    """A value that a function parses; its `ValueError` names the fault."""

    name = "text"

    def __init__(self, read: Callable[[str], object], completed: str | None) -> None:
        self._read, self._completed = read, completed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> object:  # noqa: ANN401 - click's own type
        """Read what was written; a default is no text."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Have the shell complete a file or a folder."""
        del ctx, param
        return [CompletionItem(incomplete, type=self._completed)] if self._completed else []


def option(  # noqa: PLR0913 - the words of a declaration
    name: str,
    *,
    help: str,  # noqa: A002 - click's word
    subject: str = OWN,
    metavar: str | None = None,
    type: Callable[[str], object] = str,  # noqa: A002 - click's word
    choices: Sequence[str] | None = None,
    default: object = None,
    dest: str | None = None,
    short: str | None = None,
    flag: bool = False,
    repeatable: bool = False,
) -> Option:
    """Declare an option; without it the value is None, False for a flag, `[]` for a repeatable one."""
    names = [one for one in (dest, short, name) if one is not None]
    if flag:
        made = Option(names, is_flag=True, default=False, help=help)
    else:
        made = Option(
            names,
            type=_type(type, choices, metavar),
            multiple=repeatable,
            default=default,
            metavar=metavar,
            help=help,
        )
    made.subject = subject
    return made


def argument(  # noqa: PLR0913 - the words of a declaration
    name: str,
    *,
    metavar: str,
    help: str,  # noqa: A002 - click's word
    type: Callable[[str], object] = str,  # noqa: A002 - click's word
    choices: Sequence[str] | None = None,
    default: object = None,
    optional: bool = False,
    several: bool = False,
) -> Argument:
    """Declare an argument; `several` takes all that follow."""
    return Argument(
        name,
        about=help,
        metavar=metavar,
        type=_type(type, choices, metavar),
        required=not optional,
        nargs=-1 if several else 1,
        **({} if default is None else {"default": default}),
    )


def _type(
    read: Callable[[str], object], choices: Sequence[str] | None, metavar: str | None
) -> click.ParamType[Any]:
    if choices is not None:
        return click.Choice(choices)
    return _Parsed(read, _COMPLETED.get(metavar or ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """The options and arguments of a command, and its help."""

    about: str
    """Paragraphs, which blank lines separate."""
    example: str
    params: Sequence[click.Parameter] = ()
    exits: Mapping[ExitCode, str] = field(default_factory=dict[ExitCode, str])
    """Exit codes of its own."""
    asks: bool = True
    """Whether it makes requests, to a registry or an agent."""
    passes_on: bool = False
    """Whether the words after its first argument are a command that it runs."""
    instead: str = ""
    """What to do instead, for who gives it an argument that it does not take."""


Commands = Mapping[str, tuple[Callable[[], Declaration], Run]]
"""The commands of one module by their last word: what declares each, and what does its work."""


class Command(click.Command):
    """A command as it was declared."""

    def __init__(self, path: Sequence[str], declared: Declaration, run: Run) -> None:
        super().__init__(
            path[-1],
            params=[*declared.params, _help_option()],
            add_help_option=False,
            context_settings={"allow_interspersed_args": not declared.passes_on, "allow_extra_args": True},
        )
        self.path = " ".join(path)
        self.declared = declared
        self._run = run

    @property
    def exits(self) -> dict[ExitCode, str]:
        """Its exit codes, in words."""
        special = self.declared.exits
        of_peer = REGISTRY_MEANINGS if self.path.startswith("gpu-agent registry ") else AGENT_MEANINGS
        meanings = {**MEANINGS, ExitCode.OK: "done", **of_peer, **special}
        usual = EXITS_OF_REQUESTS if self.declared.asks else (ExitCode.OK, ExitCode.CONFIGURATION)
        return {code: meanings[code] for code in sorted({*usual, *special})}

    @property
    def subjects(self) -> dict[str, list[Option]]:
        """Its options by subject, its own first."""
        found: dict[str, list[Option]] = {OWN: []}
        for param in self.params:
            if isinstance(param, Option):
                found.setdefault(param.subject, []).append(param)
        return {subject: options for subject, options in found.items() if options}

    @property
    def takes(self) -> list[Argument]:
        """Its arguments."""
        return [param for param in self.params if isinstance(param, Argument)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; a mistake knows the command that it was made in."""
        try:
            extra = super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        if extra and not ctx.resilient_parsing:
            takes = "no more arguments" if self.takes else "no argument"
            hint = f": {self.declared.instead}" if self.declared.instead else ""
            action = self.path.removeprefix("gpu-agent ")  # which stands before each message
            raise click.UsageError(f"{action} takes {takes}, but got {extra[0]!r}{hint}", ctx)
        return extra

    def invoke(self, ctx: click.Context) -> int:
        """Do the work; `ctx.obj` is the child that reads the GPUs already, if there is one."""
        gc.enable()  # the program starts without
        return self._run(Arguments(child=ctx.obj, **self.values(ctx)))

    def values(self, ctx: click.Context) -> dict[str, object]:
        """Return the values by name."""
        repeatable = {param.name for param in self.params if param.multiple or param.nargs == -1}
        return {
            name: list(value or ()) if name in repeatable else value for name, value in ctx.params.items()
        }

    def get_help(self, ctx: click.Context) -> str:
        """Write the whole help."""
        del ctx
        parts = [f"usage: {self.usage}", fill_paragraphs(self.declared.about)]
        if self.takes:
            parts.append(_listed("arguments", [(shown(one), one.about) for one in self.takes]))
        for subject, options in self.subjects.items():
            parts.append(_listed(subject, [(_names(one), one.help or "") for one in options]))
        parts.append(f"example:\n  {self.declared.example}")
        parts.append("\n".join(["exit codes:", *exit_code_lines(self.exits)]))
        return "\n\n".join(parts)

    @property
    def usage(self) -> str:
        """The command with its arguments."""
        return " ".join([self.path, "[OPTIONS]", *(shown(one) for one in self.takes)])


@dataclass(frozen=True, slots=True)
class Entry:
    """A command in the list of its group: the module that is loaded when it is used, and a line about it."""

    module: str
    summary: str


class Group(click.Group):
    """Commands under one word, by subject."""

    def __init__(
        self,
        *path: str,
        summary: str,
        about: str,
        what: str,
        subjects: Mapping[str, Mapping[str, "Entry | Group"]],
        load: Callable[[str], Commands],
        params: Sequence[click.Parameter] = (),
    ) -> None:
        """`what`: how the next word is called; `load`: reads a module's commands."""
        super().__init__(path[-1], params=[_help_option(), *params], add_help_option=False)
        self.path = " ".join(path)
        self.summary, self.about, self.what = summary, about, what
        self.subjects = subjects
        self._load = load

    @property
    def entries(self) -> dict[str, "Entry | Group"]:
        """All commands of the group, in the order of its subjects."""
        return {name: one for subject in self.subjects.values() for name, one in subject.items()}

    def command(self, name: str) -> "Command | Group":  # type: ignore[override]
        """Return one of the commands, loaded."""
        entry = self.entries[name]
        if isinstance(entry, Group):
            return entry
        declare, run = self._load(entry.module)[name]
        return Command([*self.path.split(), name], declare(), run)

    def get_command(self, ctx: click.Context, cmd_name: str) -> "Command | Group | None":
        """Return one of the commands, None where there is none of the name."""
        del ctx
        return self.command(cmd_name) if cmd_name in self.entries else None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        del ctx
        return list(self.entries)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name, with the line about it and without loading it."""
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [
            CompletionItem(name, help=one.summary)
            for name, one in self.entries.items()
            if name.startswith(incomplete)
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what names no command, with the next step."""
        if ctx.resilient_parsing:  # a shell asks what may follow
            return super().parse_args(ctx, args)
        own = {name for param in self.params for name in param.opts}
        if not args:
            if ctx.parent is not None:
                ctx.fail(f"say which {self.what}: {', '.join(self.entries)}")
            print(self.get_help(ctx))
            ctx.exit()
        if args[0].startswith("-") and args[0] not in own:
            word = args[0].partition("=")[0]
            hint = did_you_mean(word, own) or f"; options come after the {self.what}: put {word} there"
            ctx.fail(f"no {self.what} is named before {word}{hint}")
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first word names."""
        command = self.get_command(ctx, args[0])
        if command is None and not ctx.resilient_parsing:
            ctx.fail(f"no {self.what} {args[0]!r}: {self._meant(args[0])}")
        return args[0], command, args[1:]

    def get_help(self, ctx: click.Context) -> str:
        """Write the whole help; that of the program has its exit codes."""
        own = [(_names(one), one.help or "") for one in self.params if isinstance(one, Option)]
        parts = [
            f"usage: {self.path} {self.what.upper()} ...",
            fill_paragraphs(self.about),
            _listed(OWN, own),
        ]
        width = max(map(len, self.entries), default=0)
        for subject, entries in self.subjects.items():
            lines = [f"  {name:<{width}}  {one.summary}" for name, one in entries.items()]
            parts.append("\n".join([f"{subject}:", *lines]))
        parts.append(f"`{self.path} {self.what.upper()} --help` says more, with an example.")
        if ctx.parent is None:
            parts.append("\n".join(["exit codes:", *exit_code_lines(MEANINGS)]))
        return "\n\n".join(parts)

    def _meant(self, word: str) -> str:
        path = self.path.split()[1:]
        below = [
            f"`{' '.join((*path, name, word))}`"
            for name, one in self.entries.items()
            if isinstance(one, Group) and word in one.entries
        ]
        if below:
            return f"did you mean {' or '.join(below)}?"
        import difflib

        nearest = difflib.get_close_matches(word, list(self.entries), 1)
        return f"did you mean `{nearest[0]}`?" if nearest else f"there are: {', '.join(self.entries)}."


def values_of(declared: Declaration, path: Sequence[str], words: Sequence[str]) -> dict[str, object]:
    """Read words as a command's options, without running it; raises `Failure` for a mistake in them."""
    command = Command(path, declared, lambda _: ExitCode.OK)
    try:
        with command.make_context(command.path, list(words)) as ctx:
            return command.values(ctx)
    except click.UsageError as error:
        raise mistake(error, command.path) from None


def run(program: Group, words: Sequence[str], obj: object) -> int:
    """Run the command that the words name; raises `Failure` for a mistake in them."""
    try:
        with program.make_context(program.path, list(words), obj=obj) as ctx:
            return int(program.invoke(ctx) or 0)
    except click.exceptions.Exit as end:  # after --help and --version
        return end.exit_code
    except click.UsageError as error:
        raise mistake(error, program.path) from None


def mistake(error: click.UsageError, path: str) -> Failure:
    """Return the failure of a command whose words are wrong: a sentence with the next step."""
    ctx = error.ctx
    if ctx is not None:
        path = getattr(ctx.command, "path", path)
    return Failure(f"{_fault(error)}\nSee `{path} --help`.", ExitCode.CONFIGURATION)


def _fault(error: click.UsageError) -> str:
    match error:
        case click.NoSuchOption(option_name=name, ctx=ctx):
            known = [] if ctx is None else [one for param in ctx.command.params for one in param.opts]
            return f"there is no option {name}{did_you_mean(name, known)}"
        case click.MissingParameter(param=param) if param is not None:
            return f"{shown(param)} is missing"
        case click.BadParameter(param=param, message=message) if param is not None:
            return f"{_names(param)}: {message}"
        case click.BadOptionUsage(option_name=name) if "requires an argument" in error.message:
            return f"{name} needs a value"
    return error.message.rstrip(".")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest the name that was probably meant, as the end of a sentence."""
    import difflib

    likely = [one for one in difflib.get_close_matches(word, list(known), 1, _LIKE) if one != word]
    return f"; did you mean {likely[0]}?" if likely else ""


def shown(param: click.Parameter) -> str:
    """Write an option or argument as it is typed, with what stands behind it."""
    value = ""
    if not getattr(param, "is_flag", False):
        choices = param.type.choices if isinstance(param.type, click.Choice) else ()
        value = param.metavar or ("{" + ",".join(map(str, choices)) + "}" if choices else "VALUE")
    if isinstance(param, click.Option):
        return f"{param.opts[-1]} {value}".rstrip()
    words = f"{value} ..." if param.nargs == -1 else value
    return words if param.required else f"[{words}]"


def _names(param: click.Parameter) -> str:
    if not isinstance(param, click.Option):
        return shown(param)
    return ", ".join([*param.opts[:-1], shown(param)])


def _help_option() -> Option:
    def print_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click hands it over so
        del param
        if value:
            print(ctx.get_help())
            ctx.exit()

    return Option(
        ["-h", "--help"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=print_help,
        help="show this help and exit",
    )


def fill_paragraphs(words: str) -> str:
    """Fill paragraphs, which blank lines separate, to the width of an old terminal."""
    paragraphs = (textwrap.fill(part, _FULL_COLUMNS, break_on_hyphens=False) for part in words.split("\n\n"))
    return "\n\n".join(paragraphs)


def exit_code_lines(meanings: Mapping[ExitCode, str]) -> Iterator[str]:
    """Write a line for each exit code, or more where its meaning is long."""
    for code, meaning in meanings.items():
        yield textwrap.fill(
            meaning,
            _FULL_COLUMNS,
            initial_indent=f"  {int(code):>3}  ",
            subsequent_indent=" " * 7,
            break_on_hyphens=False,
        )


def _listed(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """List names with words about each, behind them or below; breaks no path or command at its hyphen."""
    columns = _columns() - 2
    short = [len(name) for name, _ in rows if len(name) <= _MOST_INDENT - 2 * _INDENT]
    indent = max(short, default=0) + 2 * _INDENT
    lines = [f"{title}:"]
    for name, words in rows:
        about = textwrap.wrap(
            " ".join(words.split()), max(20, columns - indent), break_on_hyphens=False, break_long_words=False
        )
        head = f"  {name}"
        if len(head) + _INDENT <= indent and about:
            lines.append(f"{head:<{indent}}{about.pop(0)}")
        else:
            lines.append(head)
        lines += [" " * indent + one for one in about]
    return "\n".join(lines)


def _columns() -> int:
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(_STDOUT).columns or _USUAL_COLUMNS
    except (OSError, ValueError):
        return _USUAL_COLUMNS
