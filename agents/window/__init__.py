"""The window of an interactive agent, in a terminal or in a browser."""
