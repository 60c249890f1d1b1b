"""Benchmarks of expunge against published competitors, on data whose noise is known.

`expunge bench` runs them. Each benchmark module holds a `expunge_bench.suites.Suite` and a function
``bench`` that returns its rows.
"""
