"""Methods for classes of very unlike frequency, one file each; FedLoGe, which is larger, has a folder of its own."""
