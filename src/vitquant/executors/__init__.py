"""What runs integer programs."""
