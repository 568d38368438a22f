"""The field, fast: the same numbers as the reference in siren.py, one implementation a device."""
