"""Where data come from: packages of Debian and npm, the hub, IDX files, fonts; and the cache of what was made."""
