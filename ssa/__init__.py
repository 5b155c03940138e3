"""Selective Self-Attention (arXiv 2411.12892): token- and position-aware temperatures for GPT-style models."""
