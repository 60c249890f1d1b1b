"""Training with noise inside the layers, and attacks that measure how robust a network is."""
