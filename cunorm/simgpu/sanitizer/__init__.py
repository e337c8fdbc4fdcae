"""What every memory access is checked for, beyond its address."""
