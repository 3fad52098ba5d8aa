"""Metrics of copy synthesis: how near a vocoder's waveform comes to the recording whose mel it was given.

All take a reference and a degraded waveform, (N,) float arrays of one length and sample rate, and return one number.
Read `inputs` (what all ask first), `spectral` (SNR and differences of spectra), `envelope` (the frames' line in it),
`speech` (PESQ and STOI), `pitch` (F0, voicing, periodicity), `cepstral` (MCD), `opinion` (DNSMOS and PLCMOS), and
`table` (all by name, with their units and packages). The packages come with the extra `eval`.
"""
