"""What `benchmarks/fuzz.py` and the tests feed to the parsers: valid files, and ways to spoil them."""
