"""Loading models: checkpoints, timm models, and the embedded demo model."""
