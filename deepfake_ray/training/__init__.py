"""The code of a training run: which rows make which batch, a worker's steps, its checkpoints, how it goes."""
