"""NVIDIA GPUs through NVML: the child that asks the driver, and the parent that asks the child."""
