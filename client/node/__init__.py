"""A SuperNode that stays warm: the node, the process behind it, and the bundle that it unpacks."""
