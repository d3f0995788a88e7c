"""What the numbers of a policy mean, as its profile says it."""

from __future__ import annotations

import math

from policy_export.config.errors import ProfileError
from policy_export.config.profile import Profile
from policy_export.program.step import Signature


def check_names(profile: Profile, signature: Signature) -> None:
    """Check that a profile's ``names`` are of entries that the policy has, one for each number.

    Raises:
        ProfileError: an entry is not there, or has another number of numbers.
    """
    entries = {entry.name: entry.shape[1:] for entry in (*signature.inputs, *signature.outputs)}
    for name, names in (profile.names or {}).items():
        if name not in entries:
            raise ProfileError(f"names.{name}: the policy has no such entry, only {', '.join(entries)}")
        size = math.prod(int(length) for length in entries[name])
        if len(names) != size:
            raise ProfileError(f"names.{name}: {len(names)} names, the entry has {size} numbers, {entries[name]}")
