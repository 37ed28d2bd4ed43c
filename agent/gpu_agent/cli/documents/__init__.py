"""What is written out of the commands and settings: completions, manual pages, reference, examples."""
