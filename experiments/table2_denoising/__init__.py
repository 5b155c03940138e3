"""Table 2: denoising."""
