"""The radiance field: a SIREN with FiLM conditioning, and the mapping network of its latents."""
