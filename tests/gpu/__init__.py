"""What holds on a CUDA GPU."""
