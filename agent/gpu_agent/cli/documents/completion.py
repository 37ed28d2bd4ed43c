"""The script by which a shell completes the words after `gpu-agent`."""

from gpu_agent.cli.documents.completion_bash import script as bash_script
from gpu_agent.cli.documents.completion_fish import script as fish_script
from gpu_agent.cli.documents.completion_words import places
from gpu_agent.cli.documents.completion_zsh import script as zsh_script
from gpu_agent.cli.grammar import Group

SCRIPTS = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}


def script_for(shell: str, root: Group) -> str:
    """Write the script for bash, zsh or fish."""
    return SCRIPTS[shell](places(root))
