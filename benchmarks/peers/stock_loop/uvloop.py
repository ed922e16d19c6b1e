"""Hides uvloop from peers that do not depend on it."""

raise ImportError("measured with the stock event loop")
