"""What is known of a family's checkpoints while none is on disk, for estimates."""

from collections.abc import Mapping
from typing import Any, ClassVar


class Published:
    """Sizes by name."""

    published: ClassVar[Mapping[str, float]] = {}
    """Parameters by part of the family's best-known checkpoint."""
    published_config: ClassVar[Mapping[str, Any]] = {}
    """Its transformer's config, where it differs from the class's defaults."""
    variants: ClassVar[Mapping[str, tuple[Mapping[str, float], Mapping[str, Any]]]] = {}
    """Part of a hub name -> what `published` and `published_config` are for checkpoints of that name."""

    @classmethod
    def published_as(cls, name: str) -> tuple[Mapping[str, float], Mapping[str, Any]]:
        """`published` and `published_config` of a hub name."""
        for part, (parameters, config) in cls.variants.items():
            if part in name:
                return {**cls.published, **parameters}, {**cls.published_config, **config}
        return cls.published, cls.published_config
