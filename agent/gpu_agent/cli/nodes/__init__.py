"""How nodes, verdicts and events are shown, wherever they are."""
