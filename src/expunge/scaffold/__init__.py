"""The first spec: what `expunge init` finds out about data and model, and the file it writes."""
