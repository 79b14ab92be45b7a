"""Engines: inline, processes, Ray, and a federation over gRPC; each is a `Port` that the one round loop drives."""
