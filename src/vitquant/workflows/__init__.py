"""Whole jobs: quantize, classify, export, compare timings."""
