"""Folders of runs, without running or reporting anything: which there are, and in what two of them differ."""
