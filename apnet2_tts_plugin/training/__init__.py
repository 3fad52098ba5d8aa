"""Training inside coqui's Trainer, whose hooks `model.Apnet2` passes on to here.

Read, for what a step sees, `corpus` (which files), `features` (the mels or latents beside them), `source` (which of
them may be mixed), `pitch` and `data` (batches); for what it does, `losses` and `step`; for a run of days, `session`
(position, saving, resuming) with `state`, `signals`, `console`, `progress` and `guard`, and `distributed` (several
processes). `plots` draws for the log.
"""
