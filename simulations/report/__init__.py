"""Reports: one self-contained HTML page of runs or of a comparison."""
