"""The demo: noise put into real digits, and the repair of a network that memorised it."""

from expunge.demo.digits import demo

__all__ = ["demo"]
