"""Speed, measured: every figure in the documentation comes from a program in this folder."""
