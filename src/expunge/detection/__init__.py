"""Which samples are bad: signals of one pass, detectors that score them, partitioners that decide.

`signals` collects what the detectors need, `detectors.detect` makes `Scores` of it, and a function
of `partitioners.partitioners` makes a `Partition` of these.
"""
