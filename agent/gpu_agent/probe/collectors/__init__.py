"""GPUs that NVML does not see: what a collector is, what runs it, and the one for AMD."""
