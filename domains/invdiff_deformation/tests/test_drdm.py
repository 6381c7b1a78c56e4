"""DRDM: its random deformations, its network, its loss, its recovery, its training and its files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from invdiff import InputError, PriorCard, TrainSettings, keyed_stream, read_prior
from invdiff.prior.training import Objective, Stage, train
from invdiff_deformation import drdm
from invdiff_deformation.drdm import (
    Drdm,
    Process,
    RandomDeformations,
    flow_steps,
    load_drdm,
    target_steps,
    warped_image,
    warped_labels,
)
from invdiff_deformation.drdm_training import (
    CardiacSlices,
    angle,
    distance,
    recovery_loss,
    roughness,
)
from invdiff_deformation.flow import compose, identity, warp
from invdiff_deformation.jacobian import jacobian
from invdiff_deformation.recovery_network import RecoveryNetwork, sides_of, sinusoids

SIDE = 32
NETWORK = {"name": "drdm", "widths": [4, 4, 4], "steps": 80, "process": {"upsample": "consistent"}}


def small(zero=False, **settings):
    torch.manual_seed(0)
    network = RecoveryNetwork(widths=[4, 4, 4], **settings).eval().requires_grad_(False)
    if zero:
        network.out.weight.zero_()
    else:
        network.out.weight.normal_(std=0.02)
    return network


def generator(network, **card):
    return Drdm(network, Process(network.dimensions), PriorCard("small", **card))


def picture(shape=(SIDE, SIDE)):
    middle = [(n - 1) / 2 + k for k, n in enumerate(shape)]
    squares = sum((x - m) ** 2 for x, m in zip(identity(shape), middle, strict=True))
    return torch.exp(-squares / 60)


@pytest.fixture
def slices(tmp_path):
    """A file of the layout of the cardiac one: four training patients of two pairs, one test patient."""
    rng = np.random.default_rng(0)
    images = (255 * picture().numpy()[None] * rng.uniform(0.5, 1, (10, 1, 1))).astype(np.uint8)
    path = tmp_path / "slices.npz"
    np.savez(
        path,
        ed=images,
        es=images[:, ::-1],
        patient=np.repeat(["a", "b", "c", "d", "e"], 2),
        split=np.array(["train"] * 8 + ["test"] * 2),
    )
    return path


# --- the random deformations ---------------------------------------------------------------


def test_components_double_in_size_from_grid_to_grid():
    process = Process(v_scale=1.0)
    drawn = [process.components(keyed_stream(0, k)) for k in range(40)]
    for k, (grid, size) in enumerate(zip((64, 32, 16, 8), (1, 2, 4, 8), strict=True)):
        values = torch.stack([fields[k] for fields in drawn])
        assert values.shape == (40, 2, grid, grid)
        assert float(values.std()) == pytest.approx(size, rel=3.3 / math.sqrt(2 * values.numel()))


def test_numbers_of_compositions():
    assert [flow_steps(t) for t in (0, 1, 20, 48, 79)] == [1, 1, 32, 102, 195]
    assert [target_steps(t) for t in (0, 1, 20, 32, 48, 79)] == [0, 1, 6, 8, 10, 13]


def test_second_field_is_composed_once_and_target_is_the_last_part_of_the_flow():
    process = Process()
    random = keyed_stream(0, 0)
    v = process.velocity(random) * 64
    both = compose(0.08 * process.velocity(random) * 64, v)
    assert float((both - v).std() / v.std()) == pytest.approx(0.08, rel=0.2)
    powers = []
    for one, count in ((both, 32), (v, 6)):
        u = torch.zeros_like(v)
        for _ in range(count):
            u = compose(u, one)
        powers.append(process.on_image(u / 64, (48, 40))[0])
    phi, psi = process.draw(20, (48, 40), keyed_stream(0, 0))
    torch.testing.assert_close(phi, powers[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(psi, powers[1], rtol=1e-4, atol=1e-6)
    assert not Process().draw(0, (32, 32), keyed_stream(0, 0))[1].any()


def test_independent_velocities_move_like_the_root_of_time():
    def length(independent):
        fields = [Process(independent=independent).draw(20, (64, 64), keyed_stream(0, k)) for k in range(8)]
        return [float(torch.stack(one).square().mean().sqrt()) for one in zip(*fields, strict=True)]

    (phi, psi), (still_phi, still_psi) = length(True), length(False)
    assert phi / still_phi == pytest.approx(32**-0.5, rel=0.25)
    assert psi / still_psi == pytest.approx(6**-0.5, rel=0.25)


def test_upsampling_of_a_constant_and_of_an_expansion():
    shift = torch.full((1, 2, 64, 64), 0.01)
    sizes = torch.tensor([128.0, 96.0])
    consistent = Process().on_image(shift, (128, 96))[0, :, 0, 0]
    released = Process(upsample="released").on_image(shift, (128, 96))[0, :, 0, 0]
    torch.testing.assert_close(consistent, 0.02 * sizes)
    torch.testing.assert_close(released, 0.01 * sizes * sizes / 64)
    growing = 0.1 * (identity((64, 64)) - 31.5)[None] / 64
    torch.testing.assert_close(
        jacobian(Process().on_image(growing, (128, 96))), torch.full((1, 128, 96), 1.21), rtol=1e-4, atol=1e-4
    )


FOLDED = {"released": (0.0, 7.2, 13.7, 25.6, 33.8), "consistent": (0.0, 0.0, 0.0, 0.02, 0.09)}
SIZES = ((1.8, 4.5), (4.2, 10.3), (5.3, 12.7), (7.4, 17.5), (9.3, 21.8))


@pytest.mark.parametrize("upsample", ["released", "consistent"])
def test_folding_of_both_factors(upsample):
    process = Process(upsample=upsample)
    for level, expected, sizes in zip((20, 40, 48, 64, 79), FOLDED[upsample], SIZES, strict=True):
        drawn = [process.draw(level, (256, 256), keyed_stream(0, k))[0] for k in range(6)]
        phi = RandomDeformations(torch.stack(drawn), tuple(range(6)))
        share = 100 * (jacobian(phi.phi) <= 0).double().flatten(1).mean(1)
        assert float(share.mean()) == pytest.approx(expected, abs=3.3 * float(share.std()) / 6**0.5 + 0.02)
        factor = 1 if upsample == "consistent" else 2
        assert float(phi.lengths.mean()) == pytest.approx(factor * sizes[0], rel=0.15)
        assert float(phi.lengths.flatten(1).amax(1).mean()) == pytest.approx(factor * sizes[1], rel=0.2)


def test_three_dimensions_at_any_size():
    phi, psi = Process(dimensions=3, control=32).draw(3, (12, 10, 7), keyed_stream(0, 0))
    assert phi.shape == psi.shape == (3, 12, 10, 7)
    with pytest.raises(InputError, match="consistent or released"):
        Process(upsample="twice")


# --- the network ------------------------------------------------------------------------------


def test_number_of_parameters():
    network = RecoveryNetwork()
    trained = sum(value.numel() for value in network.parameters())
    assert (trained, trained + network.table.numel()) == (435_435, 443_435)
    assert len(network.table) == 80


def test_sinusoids_are_the_published_table():
    table = torch.zeros(80, 100)
    rates = torch.tensor([10_000 ** (-2 * j / 100) for j in range(100)])
    t = torch.arange(80).reshape(-1, 1)
    table[:, ::2], table[:, 1::2] = torch.sin(t * rates[::2]), torch.cos(t * rates[::2])
    torch.testing.assert_close(sinusoids(80), table, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 24), (16, 16, 8)])
def test_network_answers_in_fractions_and_item_by_item(shape):
    network = small(dimensions=len(shape))
    images = torch.rand((3, 1, *shape), generator=keyed_stream(0, 0))
    t = torch.tensor([1, 40, 79])
    together = network(images, t)
    assert together.shape == (3, len(shape), *shape)
    alone = network(images[1:2], t[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-6)
    network.out.bias.fill_(5.0)
    bound = (sides_of(images) - 1) / sides_of(images)
    assert bool((network(images, t)[0] <= 2 * bound + 1e-5).all())


def test_second_pass_sees_the_image_of_the_first():
    network, image, t = small(), torch.rand((1, 1, 32, 32), generator=keyed_stream(0, 0)), torch.tensor([7])
    times = [made(network.table[t])[..., None, None] for made in network.times]
    first = network.once(image, times) * 32
    second = network.once(warp(image, first, padding="zeros"), times) * 32
    torch.testing.assert_close(network(image, t) * 32, compose(first, second), rtol=1e-4, atol=1e-5)


def test_network_refuses_other_images():
    with pytest.raises(InputError, match="multiple of 8"):
        small()(torch.zeros(1, 1, 30, 32), torch.tensor([1]))
    with pytest.raises(InputError, match="2 axes"):
        small()(torch.zeros(1, 1, 16, 16, 16), torch.tensor([1]))
    with pytest.raises(InputError, match="2 or 3"):
        RecoveryNetwork(dimensions=4)


# --- the loss ------------------------------------------------------------------------------------


def test_perfect_prediction():
    psi = torch.stack([Process().draw(t, (64, 64), keyed_stream(0, t))[1] for t in (20, 79)])
    fractions = psi / sides_of(psi)
    assert not distance(-fractions, fractions).any()
    torch.testing.assert_close(angle(-fractions, fractions), -torch.ones(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(angle(fractions, fractions), torch.ones(2), rtol=0, atol=1e-4)
    nothing = torch.zeros_like(fractions)
    assert bool((distance(nothing, fractions) <= 1).all()) and not angle(nothing, fractions).any()


def test_prediction_is_carried_by_the_target():
    """The inverse of a translation is its opposite; that of a flow, nearly the flow back."""
    psi = torch.full((1, 2, 32, 32), 0.02)
    assert float(recovery_loss(-psi, psi)) == pytest.approx(-1, abs=1e-4)
    process, random = Process(v_scale=1e-4), keyed_stream(0, 0)
    v = process.velocity(random)
    forth, back = (process.on_image(_flow(sign * v * 64, 10) / 64, (128, 128)) for sign in (1, -1))
    forth, back = forth / 128, back / 128
    p = warp(back, forth * 128)
    assert float(distance(p, forth)) < 0.1 and float(angle(p, forth)) < -0.98


def _flow(v, count):
    u = torch.zeros_like(v)
    for _ in range(count):
        u = compose(u, v)
    return u


def test_roughness_of_slopes_and_folds():
    x = identity((16, 16))[None]
    growing = torch.stack([0.004 * x[:, 0], torch.zeros(1, 16, 16)], dim=1)
    assert float(roughness(growing)) == pytest.approx((0.004 - 1e-4) / 4, rel=1e-4)
    mirrored = torch.stack([-2 * x[:, 0] / 16, torch.zeros(1, 16, 16)], dim=1)
    slopes = (2 / 16 - 1e-4) / 4
    assert float(roughness(mirrored)) == pytest.approx(slopes + 2, rel=1e-4)
    assert float(roughness(mirrored, published=True)) == pytest.approx(slopes, rel=1e-4)
    turning = torch.stack([0.01 * x[:, 1], 0.01 * x[:, 0]], dim=1)
    assert float(roughness(turning, published=True)) == pytest.approx((0.01 - 1e-4) / 2 + 2e-4, rel=1e-3)


# --- the generator -------------------------------------------------------------------------------


def test_zero_network_recovers_nothing():
    model = generator(small(zero=True))
    before = model.random((SIDE, SIDE), 48, 0, (0, 1))
    after = model.sample(picture(), 48, 0, (0, 1))
    torch.testing.assert_close(after.phi, before.phi, rtol=0, atol=1e-3)  # rounding of 48 compositions
    assert model.random((SIDE, SIDE), 48, 1, (0,)).phi.ne(before.phi[:1]).any()


@pytest.mark.parametrize("start", ["level", "top"])
def test_draws_are_keyed(start):
    model = generator(small(steps=12))
    eight = model.sample(picture(), 3, 5, tuple(range(8)), start)
    alone = model.sample(picture(), 3, 5, (3,), start)
    torch.testing.assert_close(eight.phi[3], alone.phi[0], rtol=0, atol=1e-4)
    assert len({float(one.sum()) for one in eight.phi}) == 8


def test_recovery_warps_the_original_image_from_its_level_or_the_top():
    model = generator(small())
    phi = model.random((SIDE, SIDE), 2, 0, (0,)).phi
    expected = phi
    for t in (2, 1):
        u = model.network(warped_image(picture()[None, None], expected), torch.tensor([t])) * SIDE
        expected = compose(expected, u)
    found = model.recovered(picture()[None], phi, 2)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, model.recovered(picture()[None], phi, 2, "top"))


def test_recovery_in_batches_is_recovery_one_by_one(monkeypatch):
    model = generator(small(steps=12))
    images = torch.stack([picture() * scale for scale in (1.0, 0.8, 0.5, 0.3, 0.9)])
    phi = model.random((SIDE, SIDE), 6, 0, range(5)).phi
    alone = [model.recovered(image[None], one[None], 6) for image, one in zip(images, phi, strict=True)]
    for together in (2**18, 2 * SIDE**2):
        monkeypatch.setattr(drdm, "TOGETHER", together)
        torch.testing.assert_close(model.recovered(images, phi, 6), torch.cat(alone), rtol=0, atol=1e-4)


def test_image_and_labels_move_by_one_phi():
    image = picture()
    labels = (image > 0.5).long() * 3 + (image > 0.8).long() * 4
    phi = generator(small()).random((SIDE, SIDE), 40, 0, (0, 1)).phi
    moved, found = warped_image(image[None, None], phi)[:, 0], warped_labels(labels, phi)
    assert found.shape == (2, SIDE, SIDE) and set(found.unique().tolist()) <= {0, 3, 7}
    for value, edge in ((3, 0.5), (7, 0.8)):
        assert float(((moved > edge) != (found >= value)).double().mean()) < 0.02
    shift = torch.zeros(1, 2, SIDE, SIDE)
    shift[:, 0] = 1
    assert torch.equal(warped_labels(labels, shift)[0, :-1], labels[1:])
    torch.testing.assert_close(warped_image(image[None, None], shift)[0, 0, :-1], image[1:])


def test_statistics_of_known_fields():
    shape = (20, 40)
    phi = torch.zeros(2, 2, *shape)
    phi[0, 0], phi[1, 1] = 2.0, 4.0
    found = RandomDeformations(phi, (0, 1)).statistics()
    assert found["mean_displacement_%"] == found["max_displacement_%"] == pytest.approx(10)
    assert found["diversity_%"] == pytest.approx(10 * 2**0.5)
    assert found["folded_central_%"] == found["folded_strict_%"] == found["log_jacobian_sd"] == 0
    x = identity(shape)[0]
    mirrored = torch.stack([-2 * x, torch.zeros(shape)])[None]
    one = RandomDeformations(mirrored, (0,)).statistics()
    assert one["folded_central_%"] == one["folded_strict_%"] == 100 and math.isnan(one["diversity_%"])


def test_generator_refuses_what_it_was_not_trained_for():
    model = generator(small(), shape=(SIDE, SIDE))
    for shape, level, start, message in (
        ((64, 32), 48, "level", "images of 32 x 32 and this one is 64 x 32; crop it"),
        ((8, 8, 8), 48, "level", "images of 2 axes and this one has 3"),
        ((SIDE, SIDE), 80, "level", "levels 1 to 79"),
        ((SIDE, SIDE), 0, "level", "levels 1 to 79"),
        ((SIDE, SIDE), 48, "middle", "level or top"),
    ):
        with pytest.raises(InputError, match=message):
            model.sample(torch.zeros(shape), level, 0, (0,), start)


# --- training and files ---------------------------------------------------------------------------


def test_slices_of_the_training_patients(slices):
    data = CardiacSlices(slices, held_out=2)
    assert len(data.train) == len(data.held) == 8
    batch = data.batch(4, SIDE, keyed_stream(0, 0))
    assert batch.shape == (4, 1, SIDE, SIDE) and bool(batch.isfinite().all())
    assert torch.equal(batch, data.batch(4, SIDE, keyed_stream(0, 0)))
    assert float(data.validation().max()) <= 1
    with pytest.raises(InputError, match="set crop to 32"):
        data.batch(1, 16, keyed_stream(0, 0))
    with pytest.raises(InputError, match="no training file"):
        CardiacSlices(slices.parent / "none.npz")
    with pytest.raises(InputError, match=r"network\.name=drdm"):
        data.objective(torch.nn.Identity(), TrainSettings())


def trained(slices, folder, steps, total=6, published=False):
    settings = TrainSettings(
        steps=total, precision="float32", save_every=3, log_every=3, warmup=1, stages=(Stage(1.0, SIDE, 2),)
    )
    data = CardiacSlices(slices, held_out=4, published=published)
    objective = data.objective(small().train().requires_grad_(True), settings)
    assert isinstance(objective, Objective)
    if steps < total:
        plain, left = objective.loss, iter(range(steps))

        def stopping(stage, generator):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return plain(stage, generator)

        objective.loss = stopping
        with pytest.raises(KeyboardInterrupt):
            train(objective, settings, folder)
    else:
        train(objective, settings, folder)
    return objective


def test_training_resumes_to_the_same_weights(slices, tmp_path):
    whole = trained(slices, tmp_path / "whole", 6)
    trained(slices, tmp_path / "parts", 4)
    parts = trained(slices, tmp_path / "parts", 6)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, parts.network.state_dict()[name]), name
    assert whole.validate() == parts.validate()
    published = trained(slices, tmp_path / "published", 6, published=True)
    assert math.isfinite(published.validate())


def test_file_round_trip_and_refusals(slices, tmp_path):
    objective = trained(slices, tmp_path / "run", 6)
    path = tmp_path / "small.safetensors"
    config = {"name": "small", "network": NETWORK, "card": {"data": "pictures"}}
    objective.save(path, config)
    model = load_drdm(path)
    assert (model.card.name, model.card.shape, model.card.channels) == ("small", (SIDE, SIDE), 1)
    assert model.process == Process() and model.network.steps == 80
    found = model.sample(picture(), 4, 0, (0,)).phi
    network = objective.network.eval().requires_grad_(False)
    expected = generator(network).sample(picture(), 4, 0, (0,)).phi
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)  # half precision

    objective.save(path, {**config, "card": {"shape": [8, 8, 8]}})
    with pytest.raises(InputError, match="2 axes and was trained on images of 8 x 8 x 8"):
        load_drdm(path)
    objective.save(path, {**config, "network": {**NETWORK, "process": {"speed": 1}}})
    with pytest.raises(InputError, match="process that is not known"):
        load_drdm(path)
    objective.save(path, {**config, "network": {"name": "drdm"}})
    with pytest.raises(InputError, match="does not fit the network"):
        read_prior({"path": path})
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="no invdiff header"):
        load_drdm(path)
    with pytest.raises(InputError, match="no checkpoint"):
        load_drdm(tmp_path / "none.safetensors")


@pytest.mark.parametrize("pairs", [False, True])
def test_copies_and_pairs_are_written(tmp_path, pairs):
    """Files of a generator; a pair's displacement takes its moving image to its fixed one."""
    from invdiff_deformation import formats, output
    from invdiff_deformation.generator import Generator
    from invdiff_deformation.prepare import EXAMPLES

    labels = str(EXAMPLES / "fixed_labels.nii.gz")
    made = Generator(generator(small(), shape=(SIDE, SIDE)), level=3, labels=labels, pairs=pairs)
    made.generate(EXAMPLES / "fixed.nii.gz", 2, 0, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    kinds = ["moving", "fixed", "moving_labels", "fixed_labels"] if pairs else ["image", "labels"]
    expected = [f"{kind}_{k:03d}.nii.gz" for kind in [*kinds, "displacement"] for k in range(2)]
    assert names == sorted([*expected, "manifest.csv", "draws.png"])
    image = formats.read_image(EXAMPLES / "fixed.nii.gz")
    u = torch.from_numpy(output.read_displacement(tmp_path / "displacement_001.nii.gz", image.grid)).float()
    source = formats.read_image(tmp_path / "moving_001.nii.gz") if pairs else image
    target = formats.read_image(tmp_path / ("fixed_001.nii.gz" if pairs else "image_001.nii.gz"))
    found = warped_image(torch.from_numpy(source.values)[None, None], u[None])[0, 0]
    error = (found - torch.from_numpy(target.values))[6:-6, 6:-6].abs()
    assert float(error.median()) < 0.01 * image.range[1]


def test_generators_have_no_density(tmp_path):
    from invdiff_deformation.generator import Generator

    with pytest.raises(InputError, match="no density"):
        Generator(generator(small(), shape=(SIDE, SIDE))).denoise(torch.zeros(1, 2, 8, 8), 1.0)
    with pytest.raises(InputError, match="give --input"):
        Generator(generator(small(), shape=(SIDE, SIDE))).generate(None, 1, 0, tmp_path)


def test_the_bundled_generator_deforms_and_does_not_fold():
    """The shipped weights on the phantom, which is of no training data: sizes and folding, not anatomy."""
    from invdiff_deformation import formats
    from invdiff_deformation.drdm import load_drdm
    from invdiff_deformation.prepare import EXAMPLES

    image = formats.read_image(EXAMPLES / "fixed.nii.gz")
    low, high = image.range
    still = torch.from_numpy((image.values - low) / (high - low)).float()
    found = load_drdm().sample(still, 40, 0, (0, 1)).statistics()
    assert 1 < found["mean_displacement_%"] < 10
    assert found["folded_central_%"] < 1
