"""Train one Recipe (Algorithm 1 of MixTraining, arXiv 2502.19513); needs neither Ray nor Optuna."""
