"""Training: one run from config to summary, with PyTorch Lightning."""
