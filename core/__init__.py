"""What knows no algorithm: trees of named tensors, folds, random generators, the local training loop."""
