"""The agent: who it is, its probe, one WebSocket, and the loop that carries a session's actions out."""
