"""The code of a scoring run: chunks of a manifest -> their files of predictions, and the actors that do it."""
