"""Damage to files: bits that flip, ends that are missing, headers that say something else."""

import json

from scemae.weights.model_folder import REGRESSOR_FORMAT, read_file, seal, write_file


def flip_bit(content, bit):
    """The bytes with one bit flipped, counted from the first."""
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def flip_random_bit(content, rng):
    """The bytes with any bit flipped."""
    return flip_bit(content, rng.randrange(8 * len(content)))


def cut_end(content, rng):
    """The bytes up to any place."""
    return content[: rng.randrange(len(content))]


def rewrite_header(path, change, tensors=None, sealed=True):
    """Change the header of a detector's file, and tensors by name; with a right checksum, or as 0.1.0, without."""
    held, metadata = read_file(path)
    header = json.loads(metadata[REGRESSOR_FORMAT])
    for newer in ("sha256",) if sealed else ("sha256", "boxed"):
        header.pop(newer, None)
    change(header)
    held |= tensors or {}
    text = {REGRESSOR_FORMAT: json.dumps(header)}
    write_file(path, held, seal(held, REGRESSOR_FORMAT, header) if sealed else text, overwrite=True)
