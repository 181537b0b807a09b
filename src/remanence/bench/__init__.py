"""How fast the library is: against the machine's own limit, and beside what people would pick instead.

One process measures the peak of matrix products, checks that the candidates agree, and then lets them take turns, so
that a machine whose speed wanders slows all alike. `docs/performance.md` says how to read the figures.
"""
