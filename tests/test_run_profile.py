import json

import pytest
import torch
from training_runs import TOY, Toy, drawn_faces, fixed_options, no_fsync  # noqa: F401

from scemae.training import engine, run_profile
from scemae.training.acceleration import fuse_attention
from scemae.training.engine import train
from scemae.training.run_config import CardFields, Stage1Config
from scemae.training.run_profile import Meter, count_flops, describe_profile, find_peak
from scemae.training.stage1 import Stage1

CPU = torch.device("cpu")


def count_block(tokens, width):
    """Products of a block: keys, queries, values and projection 4 d^2, MLP 8 d^2 a token, attention 2 n d a token."""
    return tokens * (12 * width**2) + 2 * tokens**2 * width


def test_the_operations_of_stage_1_by_hand(tiny_backbone, tmp_path):
    """9 of 36 patches of 16 px seen, 14 decoded; the backward costs twice the forward, where inputs need a gradient."""
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 4}
    config = Stage1Config(architecture=tiny_backbone, patch_size=16, batch_size=4, **decoder)
    recipe = Stage1(config, drawn_faces(tmp_path), CardFields(name="n", training_data="d"))
    embedding = 9 * (3 * 16**2) * 32
    encoder = 2 * count_block(10, 32)
    decoder = 10 * 32 * 16 + count_block(24, 16) + 14 * 16 * (3 * 16**2)
    expected = 4 * 2 * (2 * embedding + 3 * (encoder + decoder))
    loaded = recipe.load(0, slice(0, 4))
    fuse_attention(recipe.module, True)
    for precision in ("float32", "bf16"):
        assert count_flops(recipe.module, recipe.prepare, loaded, precision) == expected
    assert all(parameter.grad is None for parameter in recipe.module.parameters())


def test_a_meter_leaves_out_the_first_lap(monkeypatch):
    clock = iter([0.0, 0.0, 5.0, 9.0, 10.0, 10.0, 10.5, 12.0, 12.0, 16.0, 16.0, 17.0])
    monkeypatch.setattr(run_profile.time, "perf_counter", lambda: next(clock))
    meter = Meter()  # at 0
    with meter.waiting():  # 0 to 5
        pass
    meter.lap(1)  # at 9: the first, which compiles
    meter.restart()  # at 10
    with meter.waiting():  # 10 to 10.5
        pass
    meter.lap(4)  # at 12: 2 steps a second
    meter.restart()
    meter.lap(4)  # from 12 to 16: 1 step a second
    meter.restart()
    meter.lap(3)  # from 16 to 17: 3 steps a second
    assert meter.measured() == (2.0, pytest.approx(0.5 / 7))


@pytest.mark.parametrize(
    ("name", "peaks"),
    [
        ("NVIDIA H100 80GB HBM3", (989e12, 67e12)),
        ("NVIDIA H100 PCIe", (756e12, 51e12)),
        ("NVIDIA H200", (989e12, 67e12)),
        ("NVIDIA A100-SXM4-80GB", (312e12, 19.5e12)),
        ("NVIDIA L4", (121e12, 30.3e12)),
        ("NVIDIA L40S", (362e12, 91.6e12)),
        ("Tesla T4", (65e12, 8.1e12)),
    ],
)
def test_peaks_of_gpus(monkeypatch, name, peaks):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    device = torch.device("cuda")
    assert [find_peak(device, precision) for precision in ("bf16", "float32")] == [(p, "data sheet") for p in peaks]


def test_the_peak_of_a_cpu_is_measured():
    peak, source = find_peak(CPU, "float32")
    assert source == "measured"
    assert 1e8 < peak < 1e14


def test_a_run_without_memory_for_its_profile_is_whole(tmp_path, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(engine, "count_flops", fail)
    with pytest.warns(UserWarning, match=r"No profile\.json was written"):
        history = train(Toy(TOY), tmp_path / "run", fixed_options(profile=True))
    assert (history.step, history.profile) == (30, None)
    assert (tmp_path / "run" / "model" / "model.json").exists()


def test_a_run_writes_its_profile_and_is_the_same_run(tmp_path):
    run = tmp_path / "run"
    toy, plain = Toy(TOY, dropout=0.3), Toy(TOY, dropout=0.3)
    profile = train(toy, run, fixed_options(profile=True)).profile
    assert json.loads((run / "profile.json").read_text()) == profile
    assert profile["gflop_per_image"] == pytest.approx(2 * (2 * 6 * 16 + 3 * 16 * 6) / 1e9)  # 6 -> 16 -> 6, TOY's
    rate, flops = profile["images_per_second"], profile["gflop_per_image"] * 1e9
    assert profile["tflop_per_second"] == pytest.approx(rate * flops / 1e12)
    assert profile["utilisation"] == pytest.approx(profile["tflop_per_second"] / profile["peak_tflop_per_second"])
    assert 0 <= profile["loader_share"] < 1
    assert f"{rate:,.0f} images/s" in describe_profile(profile)
    assert train(plain, tmp_path / "plain", fixed_options()).profile is None
    assert not (tmp_path / "plain" / "profile.json").exists()
    for profiled, other in zip(toy.module.parameters(), plain.module.parameters(), strict=True):
        assert torch.equal(profiled, other)
    assert train(Toy(TOY, dropout=0.3), run, fixed_options(resume=True, profile=True)).profile is None  # nothing to do
    assert train(Toy(TOY, dropout=0.3), run, fixed_options(overwrite=True)).profile is None
    assert not (run / "profile.json").exists()
