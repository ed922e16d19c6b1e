"""The user's window on an interactive agent: the same in a terminal and in a browser."""
