"""The user's window."""
