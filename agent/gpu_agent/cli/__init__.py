"""The command line: arguments, printing, exit codes, and how the programs are composed."""
