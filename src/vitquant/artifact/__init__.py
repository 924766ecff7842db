"""The saved form of a quantized model."""
