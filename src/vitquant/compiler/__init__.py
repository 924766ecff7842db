"""From a calibrated model to an integer program."""
