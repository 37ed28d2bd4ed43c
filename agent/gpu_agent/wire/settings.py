"""How a setting is declared: what it means, whether it is an option, where it stands in the file.

`Setting` at a field is the only place where a setting's meaning is written. The reference in `docs/`, the
manual pages, the example files and the options of the command line are generated from it. It is here, on
the lowest floor, because the registry's thresholds are settings too.

To add a setting: a field of `node.settings.AgentSettings`, or of `server.settings.RegistrySettings` (a
threshold: of `registry.settings.Thresholds`), annotated with its whole type, its bounds and a `Setting`; then
`make reference`. With `reload=True`, its value is read where it is used, not copied at the start, and
`tests/node/test_reload.py` has another value for it.
"""

from gpu_agent.records import dataclass


@dataclass(frozen=True, slots=True)
class Setting:
    """What one setting means. Annotate the whole type of the field with it."""

    meaning: str
    """Markdown that begins in lower case and ends without a full stop."""
    other_name: str | None = None
    """Another name of its key and its variable: an owner writes one of both."""
    kind: str | None = None
    """Type and unit, where the annotation does not show them: `URL`, `list of pins`. Bounds stand there."""
    example: str | None = None
    """A value as TOML writes it, for a setting without a default; the lines of a table for a table."""
    unset: str | None = None
    """What counts where it is not set, for a default of None: `$OLLAMA_MODELS`, for example."""
    option: str | None = None
    """The option of the command line; None for a setting of the file and its variable alone."""
    metavar: str | None = None
    advanced: bool = False
    """Whether it stands below `[advanced]`: a setting that few machines need."""
    reload: bool = False
    """Whether a running program applies it when it reads its file again; else it waits for a restart."""
    registers: bool = False
    """Whether only a registration carries it (§3.1), so that a reload makes the agent register again."""
