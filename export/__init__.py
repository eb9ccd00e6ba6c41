"""One quantised graph, its exact integer reference, and its emitters (ONNX, TFLite).

Installed as ``edge_imputer.export``; the folder lies at the top of the repository.
"""

if __name__ != "edge_imputer.export":  # a second copy of every class would be loaded otherwise
    raise ImportError(
        f"this package is edge_imputer.export, but it was imported as {__name__!r}; "
        "write 'import edge_imputer.export' (after 'make setup' or 'pip install -e .')"
    )
