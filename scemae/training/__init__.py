"""Training and evaluation: `pip install "scemae[train]"`. Commands: `scemae train`, `scemae data`."""
