"""What benchmarks/simulation.py is made of: contenders, each a script of its own, and the clock beside them.

The process that measures loads neither torch nor umbel: what it maps would be counted as half of a contender's.
"""
