"""How good a model is (`metrics`), what is left of flagged samples (`audit`), whether to keep a
repair (`decision`), and what could make its numbers untrue (`diagnostics`)."""
