"""Evaluation tasks: perplexity, length, passkey retrieval, lm-evaluation-harness."""
