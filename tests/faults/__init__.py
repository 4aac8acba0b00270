"""The suite is tested: faults are planted in the library, and a property must notice each."""
