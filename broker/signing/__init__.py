"""Sign and verify orders, by Ed25519 (libsodium, through PyNaCl)."""
