"""The yardstick: training as plain PyTorch does it, with nothing around it. `bench.py` runs it beside the product.

As a process of its own (`python bare.py FOLDER EPOCHS`) it is the whole of a small experiment: imports, data, network, epochs,
validation, test, saved weights. It imports nothing of musicnet_eval.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

SAMPLE_RATE, SEGMENT, BATCH, N_MELS = 22050, 66150, 32, 64
BACKBONE = "mobilenetv3_small_050"
Batches = Iterable[tuple[Tensor, Tensor]]


def images(front: Callable[[Tensor], Tensor], audio: Tensor) -> Tensor:
    """Turn int16 segments `[B, T]` into spectrograms `[B, 1, F, N]`, one song at a time, which suits a CPU's cache."""
    with torch.no_grad():
        return torch.cat([front(part) for part in (audio.float() / 32768).split(1)])


def train_epoch(network: nn.Module, optimizer: Optimizer, front: Callable[[Tensor], Tensor], batches: Batches) -> None:
    """Take one step of cross-entropy for each batch."""
    network.train()
    for audio, label in batches:
        loss = F.cross_entropy(network(images(front, audio)), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(network: nn.Module, front: Callable[[Tensor], Tensor], batches: Batches) -> float:
    """Give the share of segments that are classified rightly."""
    network.eval()
    right = count = 0
    with torch.inference_mode():
        for audio, label in batches:
            right += int((network(images(front, audio)).argmax(1) == label).sum())
            count += len(label)
    return right / count


def random_batches(pcm: np.ndarray, label: np.ndarray, draw: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut one segment at a random place out of each song, in random order."""
    order = draw.permutation(len(pcm))
    starts = draw.integers(0, pcm.shape[1] - SEGMENT + 1, len(pcm))
    for first in range(0, len(order), BATCH):
        rows = order[first : first + BATCH]
        audio = np.stack([pcm[row, starts[row] : starts[row] + SEGMENT] for row in rows])
        yield torch.from_numpy(audio), torch.from_numpy(label[rows])


def grid_batches(pcm: np.ndarray, label: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Cover each song by segments that lie end to end."""
    count = pcm.shape[1] // SEGMENT
    segments = pcm[:, : count * SEGMENT].reshape(-1, SEGMENT)
    labels = label.repeat(count)
    for first in range(0, len(segments), 2 * BATCH):
        yield torch.from_numpy(segments[first : first + 2 * BATCH]), torch.from_numpy(labels[first : first + 2 * BATCH])


def main() -> None:
    """Train on the songs in a folder, validate after each epoch, test at the end, and save the weights."""
    import timm
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

    folder, epochs = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    data = {s: (np.load(folder / f"{s}_pcm.npy"), np.load(folder / f"{s}_label.npy")) for s in ("train", "val", "test")}
    mel, level = MelSpectrogram(SAMPLE_RATE, 2048, hop_length=512, n_mels=N_MELS), AmplitudeToDB(top_db=80)

    def front(audio: Tensor) -> Tensor:
        return level(mel(audio)).unsqueeze(1) / 40 + 1

    network = timm.create_model(BACKBONE, num_classes=int(data["train"][1].max()) + 1, in_chans=1)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        train_epoch(network, optimizer, front, random_batches(*data["train"], draw))
        accuracy(network, front, grid_batches(*data["val"]))
    print(f"test/segment/accuracy {accuracy(network, front, grid_batches(*data['test'])):.3f}")
    torch.save(network.state_dict(), folder / "bare.pth")


if __name__ == "__main__":
    main()
