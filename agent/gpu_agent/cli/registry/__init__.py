"""The commands of `gpu-agent registry`, a module each, and what several of them do alike."""
