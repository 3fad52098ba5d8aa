"""How fast vocoders are, and what memory they take, side by side in one run.

Read `systems` (what is measured, with the official code as `plain` as it can be), `clock`, `memory` and `measure`
(generators), `speech` (from text to waveform), then `report` and `plot`.
"""
