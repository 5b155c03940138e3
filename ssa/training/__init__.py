"""One run: the LightningModule, what happens around its steps, and the whole from config to summary."""
