"""What a load showed: figures, and targets met or missed, phase by phase."""


class Table:
    """Prints each row as it comes, and remembers whether all targets were met."""

    def __init__(self) -> None:
        self.met = True

    def begin(self, phase: str) -> None:
        """Start a phase."""
        print(phase, flush=True)

    def fact(self, what: str, figure: str) -> None:
        """Show a figure that has no target."""
        print(f"       {what}: {figure}", flush=True)

    def check(self, what: str, met: bool, figure: str = "") -> None:  # noqa: FBT001 - it is what a check says
        """Show whether a target was met."""
        self.met = self.met and met
        print(f"  {'ok  ' if met else 'MISS'} {what}{f': {figure}' if figure else ''}", flush=True)
