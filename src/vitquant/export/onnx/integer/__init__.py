"""Integer programs as ONNX: standard operators on integers, the same bits as the reference, no float anywhere.

Products of bytes are ``MatMulInteger`` of *unsigned* bytes on both sides. Kernels for unsigned by signed bytes add up
pairs of products in 16 bits that saturate on x86 without VNNI, as the documentation of ONNX Runtime's quantization
tells, and a signed left side has no fast one on most machines; unsigned by unsigned is exact everywhere. Wider operands
go through ``MatMul`` of int32. What else ONNX lacks is in ``arithmetic.py``. One file
for each family of operations, as in :mod:`vitquant.program.ops`.
"""

from vitquant.export.onnx.integer.export import EMIT, METADATA, OPSET, SCALES, export_integer

__all__ = ["EMIT", "METADATA", "OPSET", "SCALES", "export_integer"]
