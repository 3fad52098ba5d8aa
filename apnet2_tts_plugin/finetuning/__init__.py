"""Preparing what a vocoder is fine-tuned on: the mels of a trained acoustic model, or the latents of a VITS.

Read for acoustic models `teacher_forcing` (their mels, aligned with recordings), `extraction` (a corpus of them) and
`recipe` (what the recipes `recipes/ljspeech/apnet2_*` do), and for a VITS `latents` (of recordings) or `speech` (of
what it says itself).
"""
