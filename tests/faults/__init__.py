"""Tests in which brokers, agents, disks and machines fail."""
