"""The proof of a loss's gradient: what the checker is made of. A loss knows nothing of it."""
