"""What a repair reports: JSON (`summary`), Markdown and one self-contained HTML page."""
