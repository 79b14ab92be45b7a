"""Engines that run both apps on this machine, the command line, comparisons, reports, and looks inside models."""
