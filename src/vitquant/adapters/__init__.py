"""The way in for models of all kinds: checkpoints, timm, and the embedded demo model."""
