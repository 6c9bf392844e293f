"""Measures what the paper's tables and Fig. 5 report: `scemae eval matching | detection | silhouette | ablation`.

Predictions are written to a file first; scores are computed from that file. The features come from any extractor, a
scemae model or one of `extractors`, and reach matching and detection through the public functions only.
"""
