"""A look inside a finished run: where its models look, their filters, how far they have collapsed."""
