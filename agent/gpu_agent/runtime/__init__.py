"""What both programs need of their process: tasks, signals, log lines."""
