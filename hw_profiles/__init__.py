"""Hardware profiles: one TOML file per chip."""
