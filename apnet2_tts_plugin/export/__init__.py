"""A model as one file that runs without this package: an ONNX graph, or a program of torch.export.

`write` makes the file and checks it, of the module in `graph`, whose transforms are in `spectra`.
"""
