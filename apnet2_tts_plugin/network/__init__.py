"""The networks, as functions of tensors alone. Read `spectra`, then `generator`, then `discriminators`."""
