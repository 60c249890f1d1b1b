"""`expunge bench ssl-refine`: label noise that depends on the image, refined in rounds."""

from expunge_bench.ssl_refine.suite import DEFAULT_RATES, bench

__all__ = ["DEFAULT_RATES", "bench"]
