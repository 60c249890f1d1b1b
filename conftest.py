"""Doctests of modules that need an extra are not collected where it is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("lightning") else ["src/expunge/integrations/lightning.py"]
