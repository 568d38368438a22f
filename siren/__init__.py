"""The field: a SIREN whose layers are conditioned by FiLM, and the network that maps latents."""
