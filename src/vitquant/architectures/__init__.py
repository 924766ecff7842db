"""Families of models, float and quantized."""
