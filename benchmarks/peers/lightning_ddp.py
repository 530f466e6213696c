"""Training as Lightning's guide has it: a LightningModule, and a Trainer, with a process or several."""

import os
import tempfile
import time

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader
from training import LEARNING_RATE, arguments, images, network, say

from deepfake_ray.models.networks import computes_bf16


class Classifier(lightning.LightningModule):
    def __init__(self, options):
        super().__init__()
        self.network = network(options)

    def forward(self, x):
        return self.network(x.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch, _):
        x, labels = batch
        return nn.functional.cross_entropy(self(x), labels)

    def validation_step(self, batch, _):
        x, labels = batch
        self.log("accuracy", (self(x).argmax(1) == labels).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, fused=True)


class Epochs(lightning.Callback):
    def __init__(self, num_images):
        self.num_images = num_images

    def on_train_epoch_start(self, trainer, module):
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer, module):  # which comes after the validation
        if trainer.is_global_zero:
            say(trainer.current_epoch + 1, time.monotonic() - self.started, self.num_images)


def main():
    options = arguments(__doc__)
    torch.set_num_threads(os.cpu_count() // options.processes)
    workers, batch_size = options.loader_workers, options.global_batch_size // options.processes
    folder = tempfile.TemporaryDirectory()
    strategy = DDPStrategy(process_group_backend="gloo") if options.processes > 1 else "auto"
    more = {"num_workers": workers, "persistent_workers": workers > 0}
    train, validation = images(options, "Train"), images(options, "Validation")
    trainer = lightning.Trainer(
        accelerator="cpu", devices=options.processes, strategy=strategy, max_epochs=options.epochs,
        precision="bf16-mixed" if computes_bf16(torch.device("cpu")) else "32-true", logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        # The checkpoint as by default, but within what is measured.
        callbacks=[Epochs(len(train) + len(validation)), ModelCheckpoint(folder.name, save_on_train_epoch_end=False)],
    )  # fmt: skip
    trainer.fit(
        Classifier(options),
        DataLoader(train, batch_size, shuffle=True, **more),
        DataLoader(validation, batch_size, **more),
    )
    folder.cleanup()


if __name__ == "__main__":
    main()
