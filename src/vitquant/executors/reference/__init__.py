"""The reference executor: what each operation of an integer program means, in plain integer tensor operations.

One file for each family of operations, as in :mod:`vitquant.program.ops`.
"""

from vitquant.executors.reference.executor import EXECUTE, IntegerOutput, Reference, require_pixels

__all__ = ["EXECUTE", "IntegerOutput", "Reference", "require_pixels"]
