"""Draft trees: their structure (`structure`), building them over a batch (`build`), the verification walk (`walk`).

Without torch: the router builds trees. Nothing is imported here, so that an importer pays only for what it uses.
"""
