"""The life of one node as the node sees it: pure, events in, actions out."""
