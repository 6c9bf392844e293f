"""The command `scemae`."""
