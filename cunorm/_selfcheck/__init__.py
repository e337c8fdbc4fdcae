"""The self-check: every op held against its definition, on whatever device there is."""
