"""Corpora, tokenizers, the token cache and batches."""
