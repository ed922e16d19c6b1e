"""Job files: JSON, YAML and TOML, read with the line of all that is wrong."""
