"""What `umbel new` writes: files that work, under names that it replaces by those of somebody's own."""
