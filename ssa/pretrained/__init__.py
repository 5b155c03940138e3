"""Pretrained models in Hugging Face format."""
