"""An encoder trained on images alone (SimCLR), and labels refined in rounds that start from it."""
