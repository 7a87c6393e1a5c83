"""The benchmark of attacks: bounds are kept, gradients do more than noise, and the command runs on one's own table."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lcmem_filter.head import LCMemHead
from lcmem_filter.images import to_pixels

from tests.index.material import head, saved_encoder
from tests.test_detection_benchmark import on_ones_own_table
from tests.tiny import picture

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "attacks" / "run.py"
DETECTION = SCRIPT.parents[1] / "detection"
BOUND = 8 / 255

pytestmark = pytest.mark.slow


@pytest.fixture
def attacks(monkeypatch):
    pytest.importorskip("sklearn")
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(DETECTION))
    spec = importlib.util.spec_from_file_location("attacks_run", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in set(sys.modules) - known:
        if str(DETECTION) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("with_descriptors", [False, True])
def test_an_attack_keeps_its_bound_and_outdoes_noise(attacks, tmp_path, with_descriptors):
    torch.manual_seed(0)
    more = {"match_dim": 8, "match_spaces": ["sd"]} if with_descriptors else {}
    victim = LCMemHead.create("micro", {"sd": 4}, **more).requires_grad_(False)
    encoder = saved_encoder(tmp_path)
    encoder.vae.requires_grad_(False)
    attack = attacks.Attack(victim, "sd", encoder, steps=8)
    pixels = torch.stack([to_pixels(picture(seed), 32) for seed in range(3)])
    clean = attack.encode(pixels)
    wanted, decoded = attack.described(clean), attack.decode(clean)
    assert wanted[1] is not None and wanted[1].ndim == (4 if with_descriptors else 3)  # else tokens
    for kind in ("image", "latent"):
        make = getattr(attack, kind)
        noise, attacked = (make(pixels, BOUND, follow) for follow in (False, True))
        likeness = [float(attack._likeness(one, wanted)) for one in (clean, noise, attacked)]
        assert likeness[0] > likeness[1] > likeness[2], (kind, likeness)
        if kind == "latent":
            for one in (noise, attacked):
                apart = (attack.decode(one) - decoded).square().mean((1, 2, 3)).sqrt() / 2
                assert (apart <= BOUND * 1.02).all() and (apart > BOUND * 0.5).all()


def test_the_command(tmp_path):
    pytest.importorskip("sklearn")
    saved_encoder(tmp_path)
    head().save_pretrained(tmp_path / "head")
    output = tmp_path / "out" / "attacks.json"
    command = on_ones_own_table(
        SCRIPT, tmp_path, "--bounds", "2", "64", rate=0.2, images=8, steps=3, output=output
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(output.read_text())["found"]
    assert found["unchanged"][0] == 1.0
    for kind in ("image", "latent"):
        for bound in ("2/255", "64/255"):
            for share, low, high in found[kind][bound].values():
                assert 0 <= low <= share <= high <= 1
        assert found[kind]["64/255"]["attack"][0] <= found[kind]["2/255"]["noise"][0]
