"""Pure functions on tensors, one folder per operation: `naive.py` is the readable truth, the versions beside it are fast."""
