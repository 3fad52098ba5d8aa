"""Vocoders side by side: the same recordings through each of them, all metrics, and a report.

Read `systems` (what vocodes, by the words after `--system`), `compare` (files by systems, in processes), `statistics`
(means, and differences with their intervals), `summary` (those of a comparison), `report` (CSV, JSON and the table for
a terminal), `page` (the HTML report), and `pictures` (its spectrograms).
"""
