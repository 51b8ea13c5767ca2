from tatscli.seeding import random_of, seed_of


def test_seeds_are_pinned_for_all_time() -> None:
    """A change here would change every training that is resumed with a newer version."""
    assert seed_of("view", 0, 1, 2) == 9053124738876934361
    assert random_of("view", 0, 1, 2).randrange(10**9) == 683320973


def test_seeds_tell_their_parts_apart() -> None:
    parts = [("a", 1, 23), ("a", 12, 3), ("b", 1, 23), ("a", 1, 2, 3), ("a", "1", 23)]
    assert len({seed_of(*part) for part in parts}) == len(parts)
    assert all(0 <= seed_of(*part) < 2**63 for part in parts)
