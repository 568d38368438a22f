"""Curricula: their schema, and the settings that hold at each training step."""
