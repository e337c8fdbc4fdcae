"""A call of an op: checked, allocated, planned and launched, and remembered for the next."""
