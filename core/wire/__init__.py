"""How bytes that came from anybody are read: nothing is made of them before it is known to be within limits."""
