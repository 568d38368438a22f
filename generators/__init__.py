"""Latents, cameras and volume rendering: from a latent code to an image."""
