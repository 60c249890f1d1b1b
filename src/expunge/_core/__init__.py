"""What every package needs: randomness by name, registries, processes, progress, array types."""
