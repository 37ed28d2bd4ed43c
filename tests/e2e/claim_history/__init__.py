"""Real clients claim few GPUs of a real registry that is killed again and again; what happened is checked."""
