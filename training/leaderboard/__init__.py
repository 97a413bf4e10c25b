"""Which model answers better: a judge compares their answers in pairs, and one scale is fitted to its verdicts."""
