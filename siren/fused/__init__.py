"""Fast implementations of the field for CPU and CUDA; siren.py has the reference."""
