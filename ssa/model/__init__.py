"""GPT-style transformers with learned temperatures: torch only, nothing from the rest of the package."""
