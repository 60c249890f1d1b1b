"""Other packages: Transformers, Lightning, skorch. Each module imports its own."""
