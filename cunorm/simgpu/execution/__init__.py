"""Launches: a kernel decoded, and its lanes run through it."""
