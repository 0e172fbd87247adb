"""The rotary embedding of config.json: rope_scaling of 2024, or rope_parameters since."""

from __future__ import annotations

from dataclasses import dataclass

from phiggml.conversion.fields import Fields, shown

__all__ = ["ROPE_VECTORS", "Rope", "read_rope"]

# "su" is the first name of LongRoPE.
_LONG_ROPE = frozenset({"longrope", "su"})
_PLAIN = "default"
# GGUF's names of the factors, and config.json's.
ROPE_VECTORS = {
    "rope_factors_long.weight": "long_factor",
    "rope_factors_short.weight": "short_factor",
}


@dataclass(frozen=True)
class Rope:
    """What config.json says about the rotary embedding.

    Attributes:
        fields: rope_scaling or rope_parameters, for what only one architecture knows.
        kind: "default", or "longrope" by whatever name; others are faults.
        size: how many elements of a head are rotated; None where it is unknown because of faults.
        theta: the base of the frequencies.
        original: the context up to which the short factors hold; None where it is not stated.
    """

    fields: Fields
    kind: str
    size: int | None
    theta: float
    original: int | None

    @property
    def is_long(self) -> bool:
        return self.kind == "longrope"

    def vectors(self) -> dict[str, tuple[float, ...]]:
        """The factors by GGUF name; none for plain rotation."""
        pairs = None if self.size is None else self.size // 2
        if not self.is_long:
            return {}
        return {name: self.fields.numbers(field, pairs) for name, field in ROPE_VECTORS.items()}


def read_rope(
    config: Fields,
    head_size: int | None,
    *,
    share: float = 1.0,
    theta: float = 10_000.0,
    also_long: frozenset[str] = frozenset(),
    inner_original: bool = False,
) -> Rope:
    """Reads the rotary embedding, adding faults where it is wrong.

    Args:
        config: config.json.
        head_size: of one head; None where it is unknown because of other faults.
        share: of a head that is rotated where nothing is said.
        theta: the base where nothing is said.
        also_long: further names by which this architecture means LongRoPE.
        inner_original: whether original_max_position_embeddings inside goes before that outside.

    Source:
        transformers' precedence: rope_scaling if there is one, what stands in it before what
        stands outside, except for a Phi-3's original_max_position_embeddings. (Where a Phi-3 has
        that inside alone, transformers takes 4096; here it counts, as for llama.cpp's converter.)
    """
    place = "rope_scaling" if config.raw("rope_scaling") else "rope_parameters"
    rope = config.inner(place)
    if nested := [name for name in rope.names() if isinstance(rope.raw(name), dict)]:
        config.fault(place, f"holds {shown(nested[0])} apart; all layers rotate alike here.")
    kind_field = "rope_type" if rope.has("rope_type") else "type"
    kind = rope.text(kind_field, _PLAIN).lower()
    if kind in _LONG_ROPE | also_long:
        kind = "longrope"
    elif kind != _PLAIN:
        known = ", ".join(sorted(_LONG_ROPE | also_long))
        rope.fault(kind_field, f"known are {known}, null.")
    share_of = rope if rope.has("partial_rotary_factor") else config
    share = share_of.number("partial_rotary_factor", share, maximum=1.0)
    size = None if head_size is None else int(head_size * share)
    if size is not None and (size < 2 or size % 2):
        share_of.fault(
            "partial_rotary_factor",
            f"leaves {size} of {head_size} elements of a head to rotate; "
            "an even number above 0 is needed.",
        )
    field = "original_max_position_embeddings"
    places = (rope, config) if inner_original else (config, rope)
    original_of = next((place for place in places if place.has(field)), rope)
    original = original_of.integer(field, minimum=2) if original_of.has(field) else None
    theta_of = rope if rope.has("rope_theta") else config
    return Rope(rope, kind, size, theta_of.number("rope_theta", theta), original)
