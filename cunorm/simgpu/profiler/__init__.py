"""Counters of launches, for programs that ask for a profile."""
