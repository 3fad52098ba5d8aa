"""From what an acoustic model gives to what the vocoder takes.

Read `plan` (which settings differ, and what is done about each), `convert` (doing it), `vits` (the vocoder as the
decoder of a VITS), `framing` (mels of other programs), `error` (how far a conversion is off), and `report` (all of it
in words).
"""
