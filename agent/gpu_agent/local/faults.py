"""What goes wrong between a program and the agent on its machine. Each is a sentence with the next step."""

_NOT_NOW = ("busy", "overdue")


class LocalError(Exception):
    """Base of what goes wrong between a program and the agent on its machine; a sentence.

    The hierarchy: `LocalError`
    ├ `NoAgentError` (nobody answers there: the machine's fault)
    └ `RefusedError` (the agent says no: the caller's fault; `code` is for programs).
    """


class NoAgentError(LocalError):
    """No agent answers."""


class RefusedError(LocalError):
    """The agent refuses what was asked."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def not_now(self) -> bool:
        """Whether the agent only does not get to it: asked again in a moment, it may do it."""
        return self.code in _NOT_NOW
