"""Pure functions on tensors: quantization grids, integer arithmetic, statistics."""
