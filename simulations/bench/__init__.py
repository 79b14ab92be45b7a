"""How long a user's own experiment takes: beside a plain loop, by stage, by engine and mode, with advice."""
