"""From a folder to a package's file."""
