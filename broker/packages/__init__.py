"""Packages: build them, publish them on distribution points, and find them for jobs."""
