"""Training: stage 1, alignment, stage 2. `pip install "scemae[train]"`; commands `scemae train` and `scemae data`."""
