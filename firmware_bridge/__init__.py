"""The quantised graph as C99: kernels, the emitter of a model's C file, the public header.

Installed as ``edge_imputer.firmware_bridge``; the folder lies at the top of the repository.
"""

if __name__ != "edge_imputer.firmware_bridge":  # or every class would be loaded twice
    raise ImportError(
        f"this package is edge_imputer.firmware_bridge, but it was imported as {__name__!r}; "
        "write 'import edge_imputer.firmware_bridge' (after 'make setup' or 'pip install -e .')"
    )
