"""Training in torch: layers, the Imputer head and its loss, data, the trainer, evaluation.

Installed as ``edge_imputer.train``; the folder lies at the top of the repository.
"""

if __name__ != "edge_imputer.train":  # a second copy of every class would be loaded otherwise
    raise ImportError(
        f"this package is edge_imputer.train, but it was imported as {__name__!r}; "
        "write 'import edge_imputer.train' (after 'make setup' or 'pip install -e .')"
    )
