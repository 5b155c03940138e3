"""Plot style and temperature maps."""
