"""What to run on a machine with a GPU, and how: see README.md. None of it is a test for pytest."""
