"""Pure functions on tensors, one folder per operation: `naive.py` is the readable truth, beside it the fast ones."""
