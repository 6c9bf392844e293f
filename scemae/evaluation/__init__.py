"""The paper's tables and its figure, measured: `scemae eval matching | detection | silhouette | ablation`.

Predictions are written to a file first, scores are computed from the file. What is measured is any extractor, a model
of ours or anybody's features (`extractors`), through the public verbs only.
"""
