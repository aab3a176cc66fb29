"""The machinery: configuration, command lines, runs, checkpoints, processes. Nothing of the paper is here."""
