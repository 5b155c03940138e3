"""Pretrained models in Hugging Face's format: read and written."""
