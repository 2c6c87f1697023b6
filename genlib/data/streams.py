"""Images that stay in their files until a minibatch needs them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["StreamedImages"]


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images that stay in their files: `images[i]` decodes one, `images[indices]` chooses files and reads nothing.

    Each is an RGB image, its shorter side resized to `size` pixels, cropped to the centre square and standardised by
    the channels' mean and deviation over ImageNet. A file that is missing, cut short or no image: ValueError.
    """

    paths: np.ndarray
    size: int = 299

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As a tensor's would be: images, channels, height, width."""
        return (len(self), 3, self.size, self.size)

    def __getitem__(self, index):
        chosen = self.paths[index.cpu().numpy() if isinstance(index, Tensor) else index]
        if isinstance(chosen, np.ndarray):
            return StreamedImages(chosen, self.size)
        try:
            with Image.open(os.fsdecode(chosen)) as image:
                return _standardised(self.size)(image.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{os.fsdecode(chosen)} is no whole image ({error}); place it anew") from error

    def to(self, device) -> "StreamedImages":
        """The same images: their minibatches go to the device of the labels."""
        return self

    def minibatches(self, order: Int64[Tensor, " n"], batch_size: int, device: torch.device) -> Iterator[Tensor]:
        """The images in this order, `batch_size` at a time, decoded by as many processes as torch has threads."""
        loader = DataLoader(
            self,
            batch_size=batch_size,
            sampler=order.tolist(),
            # starting a process takes longer than decoding a few images
            num_workers=min(8, torch.get_num_threads()) if len(order) > 1000 else 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else the loader would draw from torch's global one
        )
        for images in loader:
            yield images.to(device, non_blocking=True)


@cache
def _standardised(size: int):
    from torchvision import transforms  # here, for it takes longer to import than all of genlib

    return transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )
