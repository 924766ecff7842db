"""ONNX graphs: integer operators only, and the quantize/dequantize form."""
