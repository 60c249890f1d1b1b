"""What is kept on disk: the run folder, cached stages, weights, and their hashes."""
