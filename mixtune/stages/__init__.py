"""The stage tree: epochs that recipes have in common are trained once."""
