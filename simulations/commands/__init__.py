"""The command line, and what a person sees while something runs."""
