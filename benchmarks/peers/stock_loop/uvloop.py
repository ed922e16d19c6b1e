"""Stands before uvloop on the path of peers that do not bring it along when they are installed."""

raise ImportError("measured with the stock event loop")
