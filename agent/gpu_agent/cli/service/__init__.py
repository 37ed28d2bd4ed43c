"""`gpu-agent service`: either half as a service of systemd after a pip install."""
