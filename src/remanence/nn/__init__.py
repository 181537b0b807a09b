"""The parts that models share: embeddings, positions, projections, feed-forward, softmax heads, initial values."""
