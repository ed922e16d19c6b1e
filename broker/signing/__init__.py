"""Signatures of what is ordered, by Ed25519 (libsodium's, by PyNaCl)."""
