"""The search: Ray Tune and Optuna live here and nowhere else."""
