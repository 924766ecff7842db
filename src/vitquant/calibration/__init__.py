"""From images to quantization parameters."""
