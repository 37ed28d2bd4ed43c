"""`gpu-agent doctor`: each thing that the agent needs, looked at in turn."""
