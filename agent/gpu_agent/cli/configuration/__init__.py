"""`gpu-agent config`: the settings as they are read, checked and shown."""
