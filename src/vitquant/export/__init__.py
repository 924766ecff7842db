"""The integer program and the quantized model as ONNX graphs, each compared with what it was made from."""
