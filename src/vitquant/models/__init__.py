"""The float Vision Transformer, the quantized one, and the ways from and to files."""
