"""A page over folders of runs, as they grow: what it shows, and the server that gives it to a browser."""
