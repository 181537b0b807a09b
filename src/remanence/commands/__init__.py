"""One thin file for each sub-command of `remanence`."""
