"""Configuration of the registration: the same places on every face, without labels."""

from __future__ import annotations

from dataclasses import dataclass

from scemae.training.training_config import MotionConfig, option


@dataclass(frozen=True, kw_only=True)
class RegisterConfig(MotionConfig):
    """Registration of faces, and the projector and the dense shape learned from it (ours, not in the paper)."""

    faces: int = option(8000, "Faces that are registered, at most.")
    amplitude: float = option(0.4, "How far the second view of each face is moved, see --rotation.")
    warp: float = option(1.0, "How far it is warped smoothly: 4 px of 96 on average at 1.")
    reaches: tuple[int, ...] = option(
        (4, 4, 3, 3, 3, 3, 3, 3, 3), "Of each round: how far places are looked for, cells of the map at expansion 2."
    )
    smoothings: tuple[float, ...] = option(
        (3.0, 2.0, 1.5, 1.0, 1.0, 0.8, 0.8, 0.8, 0.8), "Of each round: smoothing of the displacements, cells."
    )
    temperature: float = option(0.06, "Of the soft matching: differences of the cosine that count.")
    projector_dim: int = option(64, "Dimensions of the projected features.")
    shrinkage: float = option(0.1, "Multiple of its mean variance added to the scatter within the places.")
    components: int = option(48, "Channels of the map that the dense shape reads.")
    modes: int = option(80, "Modes of shape along which all places are moved together.")
    global_stages: int = option(2, "Stages that move all places together.")
    local_stages: int = option(1, "Stages that move each place by what lies around it.")
    global_ridge: float = option(0.3, "Ridge of the global stages, in mean squares of what they read.")
    local_ridge: float = option(0.2, "The same of the local stages.")
    batch_size: int = option(100, "Faces that are worked on at a time.")
    held_out: int = option(200, "Faces held out to measure errors without labels, at least 3.")
    seed: int = option(0, "Seed of the held-out faces, the order of the others and their motions and warps.")

    def __post_init__(self) -> None:
        self._check_at_least_1("faces", "projector_dim", "components", "modes", "batch_size")
        self._check("held_out", "at least 3: faces are matched in rings of three", self.held_out >= 3)
        self._check("amplitude", "at least 0", self.amplitude >= 0)
        self._check("warp", "at least 0", self.warp >= 0)
        self._check("temperature", "above 0", self.temperature > 0)
        self._check("reaches", "at least one number, all at least 1", min(self.reaches, default=0) >= 1)
        wanted = f"{len(self.reaches)} numbers above 0, as many as reaches"
        as_many = len(self.smoothings) == len(self.reaches)
        self._check("smoothings", wanted, as_many and min(self.smoothings) > 0)
        for name in ("global_ridge", "local_ridge", "shrinkage"):
            self._check(name, "above 0", getattr(self, name) > 0)
