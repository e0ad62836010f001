"""An image read as tokens: which pixels are which token, and what is said, counted and refused about it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import build, classifiers, close, image_specs, poolers, taggers
from torch.nn import functional as F

from pellucid.batch import Tokens
from pellucid.cli.outline import outline
from pellucid.errors import DataError
from pellucid.nn.embed import Patches
from pellucid.nn.flops import cache_bytes, count_parameters
from pellucid.nn.init import initialise
from pellucid.nn.models import build_model
from pellucid.spec import EncoderSpec, InitRule, PatchSpec

few = settings(max_examples=examples(20))
RULES: tuple[InitRule, ...] = ("normal", "fan_in", "xavier")
no_words = st.one_of(poolers, classifiers, taggers, st.none())
sizes = st.builds(
    lambda down, across, size, channels: PatchSpec(down * size, across * size, size, channels),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
)


def images(patches: PatchSpec, batch: int = 2, seed: int = 0) -> torch.Tensor:
    shape = batch, patches.channels, patches.height, patches.width
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(sizes)
@few
@torch.no_grad()
def test_patches_equal_a_convolution_whose_stride_is_its_kernel(spec: PatchSpec) -> None:
    patches, seen = Patches(spec, 5).double(), images(spec)
    kernel = patches.project.weight.unflatten(1, (spec.channels, spec.size, spec.size))
    expected = F.conv2d(seen, kernel, patches.project.bias, stride=spec.size).flatten(2).mT
    got = patches(seen)
    assert got.shape == (2, spec.n_places, 5)
    close(got[:, 1:], expected)
    assert torch.equal(got[:, 0], patches.first.expand(2, -1))


@given(sizes, st.data())
@few
@torch.no_grad()
def test_a_pixel_is_in_one_patch(spec: PatchSpec, data: st.DataObject) -> None:
    patches, seen = Patches(spec, 5).double(), images(spec)
    y, x = data.draw(st.integers(0, spec.height - 1)), data.draw(st.integers(0, spec.width - 1))
    other = seen.clone()
    other[:, :, y, x] += 1.0
    changed = (patches(seen) != patches(other)).any(-1).any(0)
    assert changed.nonzero().flatten().tolist() == [1 + (y // spec.size) * (spec.width // spec.size) + x // spec.size]


@given(image_specs(no_words), st.sampled_from(RULES))
@few
def test_a_new_model_of_images_is_finite_and_as_large_as_its_spec_says(spec: EncoderSpec, rule: InitRule) -> None:
    model: Any = initialise(build_model(spec), rule).double()
    assert spec.embed.patches is not None
    assert count_parameters(spec).total == model.n_parameters and cache_bytes(spec, spec.context) == 0
    with torch.no_grad():
        assert model(images(spec.embed.patches)).isfinite().all()
    weight = model.embed.patches.project.weight.detach()
    wanted = {"normal": 0.02, "fan_in": weight.shape[1] ** -0.5, "xavier": (2 / sum(weight.shape)) ** 0.5}[rule]
    assert weight.numel() < 40 or 0.5 < float(weight.std()) / wanted < 2.0
    assert model.embed.patches.first.any() and not model.embed.patches.project.bias.any()


@given(image_specs(no_words))
@few
def test_places_are_told_or_known(spec: EncoderSpec) -> None:
    model = build(spec)
    assert spec.embed.patches is not None
    seen = images(spec.embed.patches)
    with torch.no_grad():
        close(model(seen, Tokens.plain(2, spec.context)), model(seen))
        alone = torch.cat([model(seen[i : i + 1]) for i in range(2)])
    close(model(seen), alone)


@given(image_specs(classifiers))
@few
def test_patch_model_says_what_it_reads(spec: EncoderSpec) -> None:
    patches = spec.embed.patches
    assert patches is not None
    said = outline(spec, 90)
    assert f"image, {patches.channels} × {patches.height} × {patches.width}" in said and "token" not in said.split()[0]
    assert f"patches {patches.n_values}→{spec.d_embed}" in said and "images" in build(spec).__rich__()


@given(image_specs(st.none()))
@few
def test_input_that_is_no_image_is_refused(spec: EncoderSpec) -> None:
    model, patches = build(spec), spec.embed.patches
    assert patches is not None
    with pytest.raises(DataError, match="reads images, not ids"):
        model(torch.zeros(1, spec.context, dtype=torch.long))
    with pytest.raises(DataError, match=r"images of \(channels, height, width\)"):
        model(torch.zeros(1, patches.channels + 1, patches.height, patches.width, dtype=torch.float64))
    with pytest.raises(DataError, match=r"images of \(channels, height, width\)"):
        model(torch.zeros(1, patches.channels, patches.height, patches.width + 1, dtype=torch.float64))
