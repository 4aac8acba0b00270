"""What every entry of the zoo must do, or refuse.

The registries are walked: an entry's card decides whether a property must hold or must be refused.
There is no list of entries, and no entry is left out.
"""
