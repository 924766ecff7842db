"""The integer program: its operations, its proof, its files. NumPy only."""
