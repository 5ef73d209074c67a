"""What the shipped bases learnt from, and how. The library `rewired` imports nothing from here."""
