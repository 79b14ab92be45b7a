"""The server's side: the ServerApp, the round loop, evaluation, checkpoints and results."""
