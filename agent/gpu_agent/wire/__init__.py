"""What the two sides say to each other: pure data, no clock, no I/O."""
