"""Names of the environment variables by which whoever starts a server tells the ServerApp where things are."""

SITES = "UMBEL_SITES"  # the list of sites
RESULTS = "UMBEL_RESULTS"  # where runs that come from other machines are kept
