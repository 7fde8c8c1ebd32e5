"""Searches replayed in simulated time against a recorded table of training runs."""
