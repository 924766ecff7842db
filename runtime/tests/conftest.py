"""Shared by the runtime's tests: the repository's makers of models and programs, and a profile for hypothesis.

The tests need vitquant itself (its compiler, and the reference executor, which the runtime must equal).
"""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("runtime", deadline=None, max_examples=60, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=3000)
settings.load_profile("runtime")
