"""Which privacy a run's transforms buy, and whether its parts fit that."""

from collections.abc import Sequence

from fedsim.privacy import Mechanism
from fedsim.robust.base import Aggregator
from fedsim.sampling import RandomSampler, Sampler
from fedsim.transforms.base import Transform
from fedsim.transforms.noise import update_noise


def mechanism_of(
    transforms: Sequence[Transform], aggregator: Aggregator, sampler: Sampler, num_clients: int
) -> Mechanism | None:
    """The mechanism of a run; None: it promises nothing.

    Raises:
        ValueError: noise without clipping, or with an aggregator or a sampler for which its epsilon is not known.
    """
    noisy = [t for t in transforms if t.noise_multiplier or t.local_noise_multiplier]
    if not noisy:
        return None
    names = f"transforms=[{','.join(t.name for t in transforms)}]"
    if len(noisy) > 1:
        raise ValueError(f"{names}: noise is added once, by the server or by the clients; leave one of them out")
    (noise,) = noisy
    delta = noise.delta if noise.delta is not None else float(max(2, num_clients)) ** -1.1
    if noise.local_noise_multiplier:
        if any(t.count_noise is not None for t in transforms):
            raise ValueError(
                f"{names}: adaptive_clip has clients tell the server how long their updates are, which {noise.name} "
                "does not hide: leave it out, for local noise clips by a norm of its own"
            )
        return Mechanism(
            scheme="local",
            noise_multiplier=noise.local_noise_multiplier,
            num_clients=num_clients,
            cohort_size=1.0,
            delta=delta,
        )
    changing = [t for t in transforms if t.apply is not None]
    if not changing or changing[-1].bound is None:
        raise ValueError(
            f"{names}: {noise.name} needs clip or adaptive_clip as the last change to an update, for example "
            f"transforms=[clip,{noise.name}]: without a bound on each client noise protects nobody"
        )
    if aggregator.rule is not None:
        raise ValueError(
            f"{names}: the noise is right for a mean; use aggregator=mean in the place of {aggregator.name}"
        )
    if not isinstance(sampler, RandomSampler):
        raise ValueError(f"{names}: epsilon is known for sampler=uniform and sampler=poisson; choose one of them")
    for transform in transforms:
        if transform.count_noise is not None:  # refuses a count that spends all there is
            update_noise(noise.noise_multiplier, transform.count_noise(sampler.cohort_size, noise.noise_multiplier))
    return Mechanism(
        scheme=sampler.scheme,
        noise_multiplier=noise.noise_multiplier,
        num_clients=num_clients,
        cohort_size=sampler.cohort_size,
        delta=delta,
    )
