"""Random changes of training batches, on the device: steps on the audio, then steps on the image. Layer 1.

A *step* is any `nn.Module` whose `forward` maps a batch to one of the same shape. It says by attributes what it is:

- `on`: `"audio"`, `[B, T]` float (the default, so that any module on audio will do), or `"image"`, `[B, K, F, N]`.
- `stereo`: true if it also takes `[B, 2, T]`, as with `data.channels=2`.
- `mixes_labels`: true if labels come out as mixtures, `[B, C]` float; they go in as such, rows of zeros and ones.

`forward` gets those of `label` and `generator` that its signature names, and gives `(x, label)` if it names `label`. The
generator is NumPy's, on the CPU, so that all small draws are the same on every device. A step that names none, such as a module
of a library, runs under global generators seeded for it. Nothing depends on what was drawn before: a resumed run draws the same.

Choices of ours in general: rates and widths are shares or physical units, never counts of bins; each row of a batch draws for
itself; a share `p` of the rows is changed and the others stay as they are, bit for bit; peaks above 1 are left, since front ends
read floats.
"""

from musicnet_eval.augment.image import FilterBankJitter, RandomResizedCrop, SpecAugment
from musicnet_eval.augment.mixing import Cutmix, MixAudio, Mixup
from musicnet_eval.augment.steps import Augment, OnImage
from musicnet_eval.augment.tempo import PitchShift, TimeStretch
from musicnet_eval.augment.waveform import BandFilter, Gain, Noise, Polarity, Shift

__all__ = [
    "Augment",
    "BandFilter",
    "Cutmix",
    "FilterBankJitter",
    "Gain",
    "MixAudio",
    "Mixup",
    "Noise",
    "OnImage",
    "PitchShift",
    "Polarity",
    "RandomResizedCrop",
    "Shift",
    "SpecAugment",
    "TimeStretch",
]
