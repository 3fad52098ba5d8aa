"""Weights: where they lie, in and out of files, under the names of this code or the official ones.

Read `find` (which file in a folder), `checkpoints` (tensors in files), `official` (the authors' names), `restore` (into
a model), `origin` (what they were trained as), `convert` (between kinds of files), `store` (models by name), and
`sources` (a model folder from elsewhere), for which `download` speaks HTTP and `hub` asks Hugging Face.
"""
