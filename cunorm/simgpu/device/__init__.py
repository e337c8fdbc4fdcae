"""Devices: their limits, what a kernel takes of them, and how its blocks lie in lanes."""
