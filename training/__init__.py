"""How the default model's adapter is made."""
