"""The bounds of integer arithmetic: plain numbers, for the modules that know torch and for those that do not."""

INT32_MAX = 2**31 - 1
"""Accumulators are int32."""

ADDEND_LIMIT = 2**30
"""What is only added to something else, and logits, are not clamped to codes; two of this size still fit 32 bits."""

MULTIPLIER_BITS, MAX_SHIFT = 22, 52
"""A requantization multiplier is ``m * 2^-n`` with ``2^21 <= m < 2^22`` and ``0 <= n <= 52``."""

EXPONENTIAL_BITS = 15
"""Precision of the table behind ``uniform`` and ``log2``: 2,047 tokens of it stay below 2^26, far inside int32."""

DIFFUSION_BITS = 8
"""Fractional bits of the exponentials that ``diffusion`` sums: with 8-bit codes, sums modulo 2^16 tell them all."""

LOG2_ROW_LIMIT = 46341
"""A row of powers of two, each at most sqrt(2) times its share of 2^15, sums to at most ``2^15 sqrt(2)``."""

MAX_NORM_CHANNELS = 1625
"""Of an integer LayerNorm: ``C^3 * 2^30``, the largest sum of squares of 16-bit codes, stays below 2^62."""
