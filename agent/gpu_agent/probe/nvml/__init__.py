"""NVIDIA GPUs through NVML: the child process that calls the driver, and its clients."""
