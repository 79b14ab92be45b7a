"""What travels between server and nodes, and who signs it; what came from anybody is read within limits."""
