"""A federation of sites: its authority, the folder of each who takes part, and the commands across machines."""
