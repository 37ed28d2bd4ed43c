"""`gpu-agent demo`: a registry and three agents on this machine."""
