"""Comparisons of strategies: many runs, and tables that say how sure they are."""
