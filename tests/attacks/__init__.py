"""Tests of what hostile logins, users and bytes must not do."""
