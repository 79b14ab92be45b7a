"""Engines: inline, Ray, and a federation over gRPC; each is a Flower `Grid` that the one round loop drives."""
