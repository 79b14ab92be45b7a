"""What the server has to do with Flower: its strategies by name, and the run of a ServerApp."""
